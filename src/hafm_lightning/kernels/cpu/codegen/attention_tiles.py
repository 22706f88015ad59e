"""What the two compiled functions of attention share: arguments, work space, packing, and the scores of a tile.

Both take one head of one clip after another. A head's keys and values are copied beside each other, with zeros up to
whole tiles, so that no product has a remainder. A tile of scores is held as ``[keys, queries]``: softmax goes along
vectors in which each query has a lane; products with keys, values and their gradients read rows as they lie in memory;
and only the queries and the gradient of the result are transposed, once for all of the tiles that they meet.

Biases come as :class:`~hafm_lightning.kernels.cpu.tiled_attention.TiledBias`: for each key of a tile, the place where
the biases of the tile's 64 queries lie one after the other, ``-inf`` where masked. Scores are logarithms to the base 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hafm_lightning.kernels.cpu.codegen.products import ROWS_AT_ONCE, Sums, product
from hafm_lightning.kernels.cpu.codegen.vector_code import BYTE, FLOAT, INT, LONG, VectorCode, long

TILE = 64
"""Queries, and keys, of a tile: 16 KiB of scores."""
LANES_AT_MOST = 16
"""A head's width must be a multiple of this."""
LOG2_E = math.log2(math.e)

FORWARD_ARGUMENTS = (
    "worker", "workers", "task", "tasks", "heads", "steps", "tiles", "scratch", "scratch_size", "factors",
    "query", "query_clip", "query_head", "query_step", "key", "key_clip", "key_head", "key_step",
    "value", "value_clip", "value_head", "value_step", "output", "output_clip", "output_head", "output_step",
    "largest", "total", "table", "table_rows", "rows", "row_count", "first", "keys", "places",
)  # fmt: skip
"""Whole numbers and addresses, in this order; a tensor has the distances of its clips, heads and steps besides.

``worker`` and ``task`` are counters from 0. ``scratch`` has ``scratch_size`` floats for each of ``workers`` threads.
``factors`` holds the scale of the scores, alone and times log2(e). ``largest`` and ``total`` are ``[B H, tiles * 64]``.
"""
BACKWARD_ARGUMENTS = (
    *FORWARD_ARGUMENTS, "gradient", "gradient_clip", "gradient_head", "gradient_step",
    "grad_query", "grad_key", "grad_value", "grad_table",
)  # fmt: skip
"""Gradients are written to ``[B, H, S, d]``, that of the table is added to float64 ``[B, H, R]``."""


def scratch_floats(tiles: int, width: int, places: int) -> int:
    """Floats that either function works with on each thread, for a bias of so many ``places``."""
    return 4 * tiles * TILE * width + 2 * places + 6 * TILE * width + 2 * TILE * TILE + 4 * TILE


class AttentionCode(VectorCode):
    """A function over all heads of all clips that is being written.

    Args:
        name: Name of the function.
        arguments: Names of its arguments, in order.
        width: Width of a head.
    """

    def __init__(self, name: str, arguments: tuple[str, ...], width: int) -> None:
        super().__init__(name)
        self.width, self._names = width, arguments
        worker = self.counter(arguments.index("worker"))
        self._room = self.at(self.pointer("scratch"), self.times(worker, self.value("scratch_size")))
        invited = self.builder.icmp_signed("<", worker, self.value("workers"))
        self._tasks = self.builder.select(invited, self.value("tasks"), long(0))
        self.steps, self.tiles = self.value("steps"), self.value("tiles")
        self.padded = self.times(self.tiles, TILE)
        self.places = self.value("row_count")
        factors = self.pointer("factors")
        self.scale, self.scale_log2 = (self.spread(self.number(factors, n)) for n in (0, 1))

    def value(self, name: str) -> Any:
        """A whole number that is given."""
        return self.argument(self._names.index(name))

    def pointer(self, name: str, kind: Any = FLOAT) -> Any:
        """An address that is given."""
        return self.argument(self._names.index(name), kind)

    def room(self, floats: Any) -> Any:
        """Some of the thread's work space."""
        place, self._room = self._room, self.at(self._room, floats)
        return place

    def each_head(self, body: Callable[[Any, Any, Any], None]) -> None:
        """``body(number, clip, head)`` for each head of each clip, shared out among the threads."""
        heads = self.value("heads")

        def task(number: Any) -> None:
            body(number, self.builder.sdiv(number, heads), self.builder.srem(number, heads))

        self.tasks(self._names.index("task"), self._tasks, task)

    def head_of(self, name: str, clip: Any, head: Any) -> tuple[Any, Any]:
        """A head of a tensor: pointer and distance of its steps."""
        begin = self.sum(self.times(clip, self.value(f"{name}_clip")), self.times(head, self.value(f"{name}_head")))
        return self.at(self.pointer(name), begin), self.value(f"{name}_step")

    def steps_from(self, first: Any) -> Any:
        """How many queries of the tile that begins at ``first`` there are."""
        return self.smaller(self.builder.sub(self.steps, first), TILE)

    def gather(self, source: tuple[Any, Any], first: Any, count: Any, target: Any, factor: Any = None) -> None:
        """``target [count, width]`` = steps of a head from ``first`` on, times a factor; zeros after the last step."""
        pointer, distance = source
        there = self.smaller(self.builder.sub(self.steps, self.whole(first)), count)

        def step(n: Any) -> None:
            place = self.at(pointer, self.times(self.sum(first, n), distance))
            self.copy(place, self.at(target, self.times(n, self.width)), self.width, factor)

        self.loop(there, step)
        missing = self.builder.sub(self.whole(count), there)
        self.fill(self.at(target, self.times(there, self.width)), self.times(missing, self.width))

    def biases(self, head: Any, target: Any) -> None:
        """``target``: the head's biases, by place."""
        rows = self.pointer("rows", BYTE)
        table = self.at(self.pointer("table"), self.times(head, self.value("table_rows")))

        def one(n: Any) -> None:
            bias = self.number(table, self.builder.zext(self.number(rows, n), LONG))
            self.builder.store(self.builder.fmul(bias, FLOAT(LOG2_E)), self.at(target, n))

        self.loop(self.places, one)

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

    def scores(self, keys: Any, queries: Any, biases: Any, places: Any, finish: Any, carried: Any = None) -> None:
        """Scores and biases of a tile, from ``keys [64, width]`` and ``queries [width, 64]``, as ``product`` does."""

        def start(row: Any, column: Any, vectors: int) -> Sums:
            begin = self.bias_rows(biases, places, row, column)
            return [[self.load(place, v * self.lanes) for v in range(vectors)] for place in begin]

        size = (TILE, TILE, self.width)
        product(self, (keys, self.width, 1), (queries, TILE), size, start, finish, carried)
