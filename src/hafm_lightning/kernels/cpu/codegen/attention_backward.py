"""The gradients of attention as one compiled function: weights are computed again, tile by tile."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hafm_lightning.kernels.cpu.codegen.attention_tiles import BACKWARD_ARGUMENTS, LOG2_E, TILE, AttentionCode
from hafm_lightning.kernels.cpu.codegen.products import (
    ROWS_AT_ONCE,
    Sums,
    adding,
    product,
    row_vectors,
    storing,
    transpose,
)
from hafm_lightning.kernels.cpu.codegen.vector_code import BYTE, DOUBLE, LONG, CompiledFunction, compiled


@lru_cache(maxsize=8)
def backward_function(width: int) -> CompiledFunction:
    """The function for heads of ``width``; arguments: ``BACKWARD_ARGUMENTS``.

    ``largest`` holds the logarithm to the base 2 of each query's sum of weights; ``total`` is not read.
    """
    return compiled(_Backward(width))


class _Backward(AttentionCode):
    """Writes the gradients of queries, keys and values, and adds up that of the bias table for each clip and head."""

    def __init__(self, width: int) -> None:
        super().__init__("attention_backward", BACKWARD_ARGUMENTS, width)
        self.whole_head = self.times(self.padded, width)
        self.key_rows, self.value_rows = self.room(self.whole_head), self.room(self.whole_head)
        self.grad_keys, self.grad_values = self.room(self.whole_head), self.room(self.whole_head)
        self.head_biases, self.grad_biases = self.room(self.places), self.room(self.places)
        self.plain, self.queries, self.mixed = (self.room(TILE * width) for _ in range(3))
        self.gradient, self.gradient_columns, self.grad_queries = (self.room(TILE * width) for _ in range(3))
        self.weights, self.grad_scores = self.room(TILE * TILE), self.room(TILE * TILE)
        self.level = self.room(TILE)
        self.each_head(self._head)

    def _head(self, number: Any, clip: Any, head: Any) -> None:
        names = ("query", "key", "value", "output", "gradient")
        sources = {name: self.head_of(name, clip, head) for name in names}
        self.gather(sources["key"], 0, self.padded, self.key_rows)
        self.gather(sources["value"], 0, self.padded, self.value_rows)
        self.biases(head, self.head_biases)
        self.fill(self.grad_keys, self.whole_head)
        self.fill(self.grad_values, self.whole_head)
        self.fill(self.grad_biases, self.places)
        size = self.times(self.steps, self.width)
        results = self.times(number, size)
        self.loop(self.tiles, lambda tile: self._queries(number, tile, sources, results))
        self.copy(self.grad_keys, self.at(self.pointer("grad_key"), results), size)
        self.copy(self.grad_values, self.at(self.pointer("grad_value"), results), size)
        self._collect(self.at(self.pointer("grad_table", DOUBLE), self.times(number, self.value("table_rows"))))

    def _collect(self, table: Any) -> None:
        """Add the gradient of each place to its row of the table, in float64."""
        rows = self.pointer("rows", BYTE)

        def one(n: Any) -> None:
            place = self.at(table, self.builder.zext(self.number(rows, n), LONG))
            more = self.builder.fpext(self.number(self.grad_biases, n), DOUBLE)
            self.builder.store(self.builder.fadd(self.builder.load(place), more), place)

        self.loop(self.places, one)

    def _queries(self, number: Any, tile: Any, sources: dict[str, tuple[Any, Any]], results: Any) -> None:
        first, size = self.times(tile, TILE), (TILE, self.width)
        self.gather(sources["query"], first, TILE, self.plain, self.scale)
        transpose(self, self.plain, self.queries, size, self.constant(LOG2_E))
        self.gather(sources["gradient"], first, TILE, self.gradient)
        transpose(self, self.gradient, self.gradient_columns, size, self.constant(1.0))
        self.gather(sources["output"], first, TILE, self.mixed)
        self.loop(TILE, self._level)
        self.fill(self.grad_queries, TILE * self.width)
        logarithms = self.at(self.pointer("largest"), self.times(number, self.padded), first)
        self.each_key_tile(tile, lambda key, places: self._tile(key, places, logarithms))
        target = self.at(self.pointer("grad_query"), results, self.times(first, self.width))
        self.copy(self.grad_queries, target, self.times(self.steps_from(first), self.width), self.scale)

    def _level(self, query: Any) -> None:
        """Minus the product of a query's result and its gradient: what softmax takes off all gradients alike."""
        begin = self.times(query, self.width)

        def part(n: Any, held: Any) -> list[Any]:
            mixed, gradient = (self.load(self.at(matrix, begin, n)) for matrix in (self.mixed, self.gradient))
            return [self.multiply_add(mixed, gradient, held)]

        (found,) = self.loop(self.width, part, [self.constant(0.0)], self.lanes)
        self.builder.store(self.builder.fneg(self.total(found)), self.at(self.level, query))

    def _tile(self, key: Any, places: Any, logarithms: Any) -> None:
        at, width = self.times(key, self.width), self.width
        keys, values = self.at(self.key_rows, at), self.at(self.value_rows, at)
        write_weights, write_scores = storing(self, self.weights, TILE), storing(self, self.grad_scores, TILE)

        def weigh(row: Any, column: Any, sums: Sums) -> None:
            logs = [self.load(self.at(logarithms, column), v * self.lanes) for v in range(len(sums[0]))]
            found = [[self.exp2(self.subtract(value, log)) for value, log in zip(of, logs, strict=True)] for of in sums]
            write_weights(row, column, found)

        def level(row: Any, column: Any, vectors: int) -> Sums:
            del row
            begin = [self.load(self.at(self.level, column), v * self.lanes) for v in range(vectors)]
            return [begin] * ROWS_AT_ONCE

        def differentiate(row: Any, column: Any, sums: Sums) -> None:
            vectors = len(sums[0])
            weights = row_vectors(self, self.weights, TILE, row, column, vectors)
            found = [
                [self.multiply(value, self.load(place)) for value, place in zip(values, at, strict=True)]
                for values, at in zip(sums, weights, strict=True)
            ]
            write_scores(row, column, found)
            for values, begin in zip(found, self.bias_rows(self.grad_biases, places, row, column), strict=True):
                for v, value in enumerate(values):
                    self.store(self.add(self.load(begin, v * self.lanes), value), begin, v * self.lanes)

        self.scores(keys, self.queries, self.head_biases, places, weigh)
        size = (TILE, TILE, width)
        product(self, (values, width, 1), (self.gradient_columns, TILE), size, level, differentiate)
        for left, right, into in (
            ((self.weights, TILE, 1), self.gradient, self.at(self.grad_values, at)),
            ((self.grad_scores, TILE, 1), self.plain, self.at(self.grad_keys, at)),
            ((self.grad_scores, 1, TILE), keys, self.grad_queries),
        ):
            size = (TILE, width, TILE)
            product(self, left, (right, width), size, adding(self, into, width), storing(self, into, width))
