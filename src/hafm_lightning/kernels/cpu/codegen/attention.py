"""Attention with a learned relative bias, and its gradients, as two compiled functions that work tile by tile.

Both take one head of one clip after another. A head's keys and values are copied beside each other, with zeros up to
whole tiles, so that no product has a remainder. A tile of scores is held as ``[keys, queries]``: softmax goes along
vectors in which each query has a lane; products with keys, values and their gradients read rows as they lie in memory;
and only the queries and the gradient of the result are transposed, once for all of the tiles that they meet.

Biases come as :class:`~hafm_lightning.kernels.cpu.tiled_attention.TiledBias`: for each key of a tile, the place where
the biases of the tile's 64 queries lie one after the other, ``-inf`` where masked. Scores are logarithms to the base 2.
The maximum and the sum of each query's weights are updated from tile to tile (arXiv 2205.14135).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from hafm_lightning.kernels.cpu.codegen.doors import ATTENTION_BACKWARD, ATTENTION_FORWARD, TILE, Door
from hafm_lightning.kernels.cpu.codegen.machine_code import CompiledFunction
from hafm_lightning.kernels.cpu.codegen.products import ROWS_AT_ONCE, adding, product, row_pointers, storing, transpose
from hafm_lightning.kernels.cpu.codegen.vector_code import BYTE, DOUBLE, FLOAT, INT, LONG, Sums, VectorCode, long

LOG2_E = math.log2(math.e)
_LEAST_SCORE = -1e30  # where no key was seen yet: finite, so that differences are numbers

Head = tuple[Any, Any]  # pointer to a head of a tensor, and distance of its steps


def scratch_floats(tiles: int, width: int, places: int) -> int:
    """Floats that either function works with on each thread, for a bias of ``places`` numbers."""
    return 4 * tiles * TILE * width + 2 * places + 6 * TILE * width + 2 * TILE * TILE + 4 * TILE


@lru_cache(maxsize=8)
def forward_function(width: int) -> CompiledFunction:
    """The function for heads of ``width``; its door in :mod:`.doors` has the arguments."""
    return _Forward(width).compiled()


@lru_cache(maxsize=8)
def backward_function(width: int) -> CompiledFunction:
    """As :func:`forward_function`; ``largest`` holds the logarithm to the base 2 of each query's sum of weights."""
    return _Backward(width).compiled()


class _Attention(VectorCode):
    """What both functions share: work space, packing, and the scores of a tile."""

    TENSORS: tuple[str, ...]  # those of whose heads tiles are read or written

    def __init__(self, door: Door, width: int) -> None:
        super().__init__(door.function, door.arguments)
        self.width = width
        worker = self.counter("worker")
        self._room = self.at(self.pointer("scratch"), self.times(worker, self.value("scratch_size")))
        invited = self.builder.icmp_signed("<", worker, self.value("workers"))
        self._count = self.builder.select(invited, self.value("tasks"), long(0))
        self.steps, self.tiles, self.places = (self.value(name) for name in ("steps", "tiles", "row_count"))
        self.padded = self.times(self.tiles, TILE)
        factors = self.pointer("factors")
        self.scale, self.scale_log2 = (self.spread(self.number(factors, n)) for n in (0, 1))
        self.whole_head = self.times(self.padded, width)
        self.key_rows, self.value_rows = self.room(self.whole_head), self.room(self.whole_head)
        self.head_biases, self.weights = self.room(self.places), self.room(TILE * TILE)
        self.plain, self.queries, self.mixed = (self.room(TILE * width) for _ in range(3))

    def room(self, floats: Any) -> Any:
        """Some of the thread's work space."""
        place, self._room = self._room, self.at(self._room, floats)
        return place

    def each_head(self, body: Callable[[Any, dict[str, Head]], None]) -> None:
        """``body(number, heads)`` for each head of each clip, shared out among the threads; keys and values packed."""

        def task(number: Any) -> None:
            count = self.value("heads")
            clip, head = self.builder.sdiv(number, count), self.builder.srem(number, count)
            heads = {}
            for name in self.TENSORS:
                by_clip, by_head, by_step = (self.value(f"{name}_{n}") for n in range(3))
                begin = self.sum(self.times(clip, by_clip), self.times(head, by_head))
                heads[name] = self.at(self.pointer(name), begin), by_step
            self.gather(heads["key"], 0, self.padded, self.key_rows)
            self.gather(heads["value"], 0, self.padded, self.value_rows)
            rows = self.pointer("rows", BYTE)
            table = self.at(self.pointer("table"), self.times(head, self.value("table_rows")))

            def bias(n: Any) -> None:
                value = self.number(table, self.builder.zext(self.number(rows, n), LONG))
                self.builder.store(self.builder.fmul(value, FLOAT(LOG2_E)), self.at(self.head_biases, n))

            self.loop(self.places, bias)
            body(number, heads)

        self.tasks(self._count, task)

    def steps_from(self, first: Any) -> Any:
        """How many queries of the tile that begins at ``first`` there are."""
        return self.smaller(self.builder.sub(self.steps, first), TILE)

    def gather(self, head: Head, first: Any, count: Any, target: Any, factor: Any = None) -> None:
        """``target [count, width]`` = steps of a head from ``first`` on, times a factor; zeros after the last step."""
        pointer, distance = head
        there = self.smaller(self.builder.sub(self.steps, self.sum(first)), count)

        def step(n: Any) -> None:
            place = self.at(pointer, self.times(self.sum(first, n), distance))
            self.copy(place, self.at(target, self.times(n, self.width)), self.width, factor)

        self.loop(there, step)
        missing = self.builder.sub(self.sum(count), there)
        self.fill(self.at(target, self.times(there, self.width)), self.times(missing, self.width))

    def each_key_tile(self, query_tile: Any, body: Callable[[Any, Any], None]) -> None:
        """``body(first key, places)`` for each tile of keys that a tile of queries can see."""
        first, keys, places = self.pointer("first", LONG), self.pointer("keys", LONG), self.pointer("places", INT)
        begin, end = self.number(first, query_tile), self.number(first, query_tile, 1)

        def tile(n: Any) -> None:
            n = self.sum(begin, n)
            body(self.times(self.number(keys, n), TILE), self.at(places, self.times(n, TILE)))

        self.loop(self.builder.sub(end, begin), tile)

    def bias_rows(self, biases: Any, places: Any, row: Any, column: Any) -> list[Any]:
        """Pointers to the biases of the keys from ``row`` on for the queries from ``column`` on."""
        found = [self.builder.sext(self.number(places, row, i), LONG) for i in range(ROWS_AT_ONCE)]
        return [self.at(biases, place, column) for place in found]

    def scores(self, keys: Any, places: Any, finish: Any, carried: Any = None) -> None:
        """Scores and biases of a tile, from ``keys [64, width]`` and the queries, as ``product`` does."""

        def start(row: Any, column: Any, vectors: int) -> Sums:
            return [self.load_row(place, vectors) for place in self.bias_rows(self.head_biases, places, row, column)]

        product(self, (keys, self.width, 1), (self.queries, TILE), (TILE, TILE, self.width), start, finish, carried)


class _Forward(_Attention):
    """Writes ``output``, and of each query the largest score and the total of the weights relative to it."""

    TENSORS = ("query", "key", "value", "output")

    def __init__(self, width: int) -> None:
        super().__init__(ATTENTION_FORWARD, width)
        self.largest, self.weight_sums, self.before, self.change = (self.room(TILE) for _ in range(4))
        self.each_head(self._head)

    def _head(self, number: Any, heads: dict[str, Head]) -> None:
        self.loop(self.tiles, lambda tile: self._queries(number, tile, heads))

    def _queries(self, number: Any, tile: Any, heads: dict[str, Head]) -> None:
        first = self.times(tile, TILE)
        self.gather(heads["query"], first, TILE, self.plain)
        transpose(self, self.plain, self.queries, (TILE, self.width), self.scale_log2)
        self.fill(self.mixed, TILE * self.width)
        self.fill(self.weight_sums, TILE)
        self.fill(self.largest, TILE, _LEAST_SCORE)
        self.each_key_tile(tile, self._tile)
        output, distance = heads["output"]

        def write(q: Any) -> None:
            factor = self.spread(self.builder.fdiv(FLOAT(1.0), self.number(self.weight_sums, q)))
            target = self.at(output, self.times(self.sum(first, q), distance))
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

        self.scores(self.at(self.key_rows, at), places, finish, self.largest)
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


class _Backward(_Attention):
    """Writes the gradients of queries, keys and values, and adds up that of the bias table for each clip and head."""

    TENSORS = ("query", "key", "value", "output", "gradient")

    def __init__(self, width: int) -> None:
        super().__init__(ATTENTION_BACKWARD, width)
        self.grad_keys, self.grad_values = self.room(self.whole_head), self.room(self.whole_head)
        self.grad_biases, self.grad_scores, self.level = self.room(self.places), self.room(TILE * TILE), self.room(TILE)
        self.gradient, self.gradient_columns, self.grad_queries = (self.room(TILE * width) for _ in range(3))
        self.each_head(self._head)

    def _head(self, number: Any, heads: dict[str, Head]) -> None:
        self.fill(self.grad_keys, self.whole_head)
        self.fill(self.grad_values, self.whole_head)
        self.fill(self.grad_biases, self.places)
        size = self.times(self.steps, self.width)
        results = self.times(number, size)
        self.loop(self.tiles, lambda tile: self._queries(number, tile, heads, results))
        self.copy(self.grad_keys, self.at(self.pointer("grad_key"), results), size)
        self.copy(self.grad_values, self.at(self.pointer("grad_value"), results), size)
        rows = self.pointer("rows", BYTE)
        table = self.at(self.pointer("grad_table", DOUBLE), self.times(number, self.value("table_rows")))

        def collect(n: Any) -> None:
            place = self.at(table, self.builder.zext(self.number(rows, n), LONG))
            more = self.builder.fpext(self.number(self.grad_biases, n), DOUBLE)
            self.builder.store(self.builder.fadd(self.builder.load(place), more), place)

        self.loop(self.places, collect)

    def _queries(self, number: Any, tile: Any, heads: dict[str, Head], results: Any) -> None:
        first, size = self.times(tile, TILE), (TILE, self.width)
        self.gather(heads["query"], first, TILE, self.plain, self.scale)
        transpose(self, self.plain, self.queries, size, self.constant(LOG2_E))
        self.gather(heads["gradient"], first, TILE, self.gradient)
        transpose(self, self.gradient, self.gradient_columns, size, self.constant(1.0))
        self.gather(heads["output"], first, TILE, self.mixed)
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
            logs = self.load_row(self.at(logarithms, column), len(sums[0]))
            found = [[self.exp2(self.subtract(value, log)) for value, log in zip(of, logs, strict=True)] for of in sums]
            write_weights(row, column, found)

        def level(row: Any, column: Any, vectors: int) -> Sums:
            return [self.load_row(self.at(self.level, column), vectors)] * ROWS_AT_ONCE

        def differentiate(row: Any, column: Any, sums: Sums) -> None:
            vectors, places_of_weights = len(sums[0]), row_pointers(self, self.weights, TILE, row, column)
            found = [
                [self.multiply(value, weight) for value, weight in zip(of, self.load_row(at, vectors), strict=True)]
                for of, at in zip(sums, places_of_weights, strict=True)
            ]
            write_scores(row, column, found)
            for values, bias in zip(found, self.bias_rows(self.grad_biases, places, row, column), strict=True):
                before = self.load_row(bias, vectors)
                self.store_row([self.add(old, value) for old, value in zip(before, values, strict=True)], bias)

        self.scores(keys, places, weigh)
        size = (TILE, TILE, width)
        product(self, (values, width, 1), (self.gradient_columns, TILE), size, level, differentiate)
        for left, right, into in (
            ((self.weights, TILE, 1), self.gradient, self.at(self.grad_values, at)),
            ((self.grad_scores, TILE, 1), self.plain, self.at(self.grad_keys, at)),
            ((self.grad_scores, 1, TILE), keys, self.grad_queries),
        ):
            size = (TILE, width, TILE)
            product(self, left, (right, width), size, adding(self, into, width), storing(self, into, width))
