"""Attention as one compiled function, without a float for every pair of steps.

The maximum and the sum of each query's weights are kept up to date from tile to tile (arXiv 2205.14135).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hafm_lightning.kernels.cpu.codegen.attention_tiles import FORWARD_ARGUMENTS, TILE, AttentionCode
from hafm_lightning.kernels.cpu.codegen.products import ROWS_AT_ONCE, Sums, adding, product, storing, transpose
from hafm_lightning.kernels.cpu.codegen.vector_code import FLOAT, CompiledFunction, compiled

_LEAST_SCORE = -1e30
"""The largest score where no key was seen yet: finite, so that differences are numbers."""


@lru_cache(maxsize=8)
def forward_function(width: int) -> CompiledFunction:
    """The function for heads of ``width``; arguments: ``FORWARD_ARGUMENTS``."""
    return compiled(_Forward(width))


class _Forward(AttentionCode):
    """Writes ``output``, and of each query the largest score and the total of the weights relative to it."""

    def __init__(self, width: int) -> None:
        super().__init__("attention_forward", FORWARD_ARGUMENTS, width)
        whole = self.times(self.padded, width)
        self.key_rows, self.value_rows, self.head_biases = self.room(whole), self.room(whole), self.room(self.places)
        self.plain, self.queries, self.mixed = (self.room(TILE * width) for _ in range(3))
        self.weights = self.room(TILE * TILE)
        self.largest, self.weight_sums, self.before, self.change = (self.room(TILE) for _ in range(4))
        self.each_head(self._head)

    def _head(self, number: Any, clip: Any, head: Any) -> None:
        sources = {name: self.head_of(name, clip, head) for name in ("query", "key", "value", "output")}
        self.gather(sources["key"], 0, self.padded, self.key_rows)
        self.gather(sources["value"], 0, self.padded, self.value_rows)
        self.biases(head, self.head_biases)
        self.loop(self.tiles, lambda tile: self._queries(number, tile, sources["query"], sources["output"]))

    def _queries(self, number: Any, tile: Any, query: tuple[Any, Any], output: tuple[Any, Any]) -> None:
        first = self.times(tile, TILE)
        self.gather(query, first, TILE, self.plain)
        transpose(self, self.plain, self.queries, (TILE, self.width), self.scale_log2)
        self.fill(self.mixed, TILE * self.width)
        self.fill(self.weight_sums, TILE)
        self.fill(self.largest, TILE, _LEAST_SCORE)
        self.each_key_tile(tile, self._tile)

        def write(q: Any) -> None:
            factor = self.spread(self.builder.fdiv(FLOAT(1.0), self.number(self.weight_sums, q)))
            target = self.at(output[0], self.times(self.sum(first, q), output[1]))
            self.copy(self.at(self.mixed, self.times(q, self.width)), target, self.width, factor)

        self.loop(self.steps_from(first), write)
        kept = self.sum(self.times(number, self.padded), first)
        self.copy(self.largest, self.at(self.pointer("largest"), kept), TILE)
        self.copy(self.weight_sums, self.at(self.pointer("total"), kept), TILE)

    def _tile(self, key: Any, places: Any) -> None:
        at = self.times(key, self.width)
        self.copy(self.largest, self.before, TILE)
        write = storing(self, self.weights, TILE)

        def finish(row: Any, column: Any, sums: Sums, *most: Any) -> list[Any]:
            write(row, column, sums)
            found = list(most)
            for values in sums:
                found = [self.larger(value, held) for value, held in zip(values, found, strict=True)]
            return found

        keys = self.at(self.key_rows, at)
        self.scores(keys, self.queries, self.head_biases, places, finish, self.largest)
        self.vectors_of(TILE, self._weigh)
        product(
            self, (self.weights, 1, TILE), (self.at(self.value_rows, at), self.width), (TILE, self.width, TILE),
            adding(self, self.mixed, self.width, self.change), storing(self, self.mixed, self.width),
        )  # fmt: skip

    def _weigh(self, column: Any) -> None:
        """Scores to weights, for a vector of queries."""
        most = self.load(self.at(self.largest, column))
        change = self.exp2(self.subtract(self.load(self.at(self.before, column)), most))
        self.store(change, self.at(self.change, column))

        def keys(row: Any, *sums: Any) -> list[Any]:
            found = []
            for i, held in enumerate(sums):
                place = self.at(self.weights, self.times(self.sum(row, i), TILE), column)
                weight = self.exp2(self.subtract(self.load(place), most))
                self.store(weight, place)
                found.append(self.add(held, weight))
            return found

        sums = self.loop(TILE, keys, [self.constant(0.0)] * ROWS_AT_ONCE, ROWS_AT_ONCE)
        now = self.add(self.add(sums[0], sums[1]), self.add(sums[2], sums[3]))
        total = self.at(self.weight_sums, column)
        self.store(self.multiply_add(self.load(total), change, now), total)
