"""The innermost parts of the compiled step, written in LLVM's vectors: products of matrices, and waiting for threads.

Left to itself the compiler reads four rows of weights in turn, and a core then reaches a third of what the memory
gives. Here the weights lie in the order in which they are read (:func:`tiled`), are fetched ahead, and two bf16
weights widen to float32 by one shift and one mask. LLVM fits the vectors to those of the processor at hand.

Numba's cache on disk notices changes of this file by ``TILES_CHECKSUM`` in `step_kernel.py` alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.np.arrayobj import make_array as untyped_make_array
from torch import Tensor

from hafm_lightning.kernels.cpu.codegen.vector_code import BYTE, FLOAT, INT, Vectors

cgutils: Any = untyped_cgutils
make_array: Any = untyped_make_array


def intrinsic(generator: Callable[..., Any]) -> Any:
    """Numba's decorator; callers pass the arguments without the typing context, which its type does not say."""
    return numba_intrinsic(generator)


OUTPUTS_IN_TILE = 4
"""Outputs that share one reading of the inputs."""
LANES = 16
"""Sums that each output is made of, until the last step."""
INPUTS_IN_TILE = 2 * LANES
"""Inputs at a time; their number must be a multiple of this."""
FETCH_AHEAD_BYTES = 8192
"""How far ahead of its use memory is prefetched."""
STEPS_AT_ONCE = 8
"""Steps of the cache that are scored or mixed together."""

_LINE_BYTES = 64


def tiled(weights: Tensor) -> Tensor:
    """Weights ``[layers, out, in]`` in the order in which they are read, ``[layers, out / 4, 4 in]``.

    Each 32 inputs of 4 outputs lie together. Of bf16 weights (given as uint16), inputs 16 apart share 32 bits.
    """
    layers, outputs, inputs = weights.shape
    tiles = weights.view(layers, outputs // OUTPUTS_IN_TILE, OUTPUTS_IN_TILE, inputs // INPUTS_IN_TILE, 2, LANES)
    order = (0, 1, 3, 2, 5, 4) if weights.dtype == torch.uint16 else (0, 1, 3, 2, 4, 5)
    return tiles.permute(order).reshape(layers, outputs // OUTPUTS_IN_TILE, OUTPUTS_IN_TILE * inputs).contiguous()


class _Code(Vectors):
    """The instructions of a function that Numba calls; ``kind``: float32, int8, or uint16 for the bits of bf16."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        super().__init__(builder, LANES)
        self.context, self.kinds, self.arguments = context, signature.args, arguments

    def array(self, n: int) -> tuple[Any, list[Any]]:
        """Data and sizes of an argument that is an array."""
        array = make_array(self.kinds[n])(self.context, self.builder, self.arguments[n])
        return array.data, cgutils.unpack_tuple(self.builder, array.shape)

    def whole(self, n: int) -> Any:
        """An argument that is a whole number, in 64 bits."""
        return self.context.cast(self.builder, self.arguments[n], self.kinds[n], types.int64)

    def widened(self, kind: Any, pointer: Any) -> list[Any]:
        """32 numbers as two float32 vectors; of bf16 the even ones, then the odd."""
        builder = self.builder
        if kind == types.float32:
            return self.load_row(pointer, 2)
        if kind == types.uint16:
            whole = ir.VectorType(INT, LANES)
            words = builder.load(builder.bitcast(pointer, whole.as_pointer()), align=2)
            upper = (ir.Constant(whole, [value] * LANES) for value in (16, 0xFFFF0000))
            low, high = (step(words, value) for step, value in zip((builder.shl, builder.and_), upper, strict=True))
            return [builder.bitcast(low, self.vector), builder.bitcast(high, self.vector)]
        small = ir.VectorType(BYTE, LANES).as_pointer()
        halves = (builder.bitcast(self.at(pointer, n * LANES), small) for n in range(2))
        return [builder.sitofp(builder.load(half, align=1), self.vector) for half in halves]

    def cached(self, kind: Any, pointer: Any) -> list[Any]:
        """:func:`_columns` numbers of the cache as float32 vectors: of bf16 the even ones, then the odd."""
        return self.widened(kind, pointer) if kind == types.uint16 else [self.load(pointer)]

    def floats(self, kind: Any, pointer: Any) -> list[Any]:
        """As many float32 numbers, in the order in which :meth:`cached` gives those of the cache."""
        if kind != types.uint16:
            return [self.load(pointer)]
        low, high = self.load_row(pointer, 2)
        return [self.picked(low, high, range(first, 2 * LANES, 2)) for first in (0, 1)]

    def store_floats(self, kind: Any, vectors: Sequence[Any], pointer: Any) -> None:
        """Inverse of :meth:`floats`."""
        if kind == types.uint16:
            orders = [[half // 2 + LANES * (half % 2) for half in range(at, at + LANES)] for at in (0, LANES)]
            vectors = [self.picked(vectors[0], vectors[1], order) for order in orders]
        self.store_row(vectors, pointer)

    def fetch(self, pointer: Any, count: int, kind: Any) -> None:
        """Prefetch the ``count`` numbers that come :data:`FETCH_AHEAD_BYTES` after ``pointer``; none need be there."""
        builder = self.builder
        signature = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT, INT, INT])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        begin, options = builder.bitcast(pointer, BYTE.as_pointer()), [ir.Constant(INT, value) for value in (0, 3, 1)]
        for offset in range(FETCH_AHEAD_BYTES, FETCH_AHEAD_BYTES + count * kind.bitwidth // 8, _LINE_BYTES):
            builder.call(function, [self.at(begin, offset), *options])  # options: to read, to keep, data

    def picked(self, first: Any, second: Any, order: Sequence[int]) -> Any:
        """Numbers of two vectors after each other, in an order."""
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(INT, len(order)), list(order)))

    def reduced(self, vectors: Sequence[Any]) -> Any:
        """The sums of each of 4 or 8 vectors, as one vector of 4 or 8: neighbours are added, again and again."""
        count, left = len(vectors), LANES
        while len(vectors) > 1:
            vectors = [self._neighbours(vectors[i], vectors[i + 1], LANES) for i in range(0, len(vectors), 2)]
        result = vectors[0]  # each sum is still in LANES / count parts, one after the other
        while left > count:
            left //= 2
            result = self._neighbours(result, result, left)
        return result

    def _neighbours(self, first: Any, second: Any, count: int) -> Any:
        """The first ``count`` sums of neighbours in two vectors, those of the first before those of the second."""
        even, odd = (self.picked(first, second, range(at, 2 * count, 2)) for at in (0, 1))
        return self.builder.fadd(even, odd)

    def products(self, values: Sequence[Any], others: Sequence[Any], total: Any) -> Any:
        """``total`` and the products of vectors."""
        for value, other in zip(values, others, strict=True):
            total = self.multiply_add(value, other, total)
        return total


def _columns(kind: Any) -> int:
    """Columns of the cache that are read at a time: 16 float32, or 32 bf16 in as many bytes."""
    return 2 * LANES if kind == types.uint16 else LANES


def _writing(body: Callable[[_Code], None]) -> Callable[[Any, Any, Any, Any], Any]:
    """What Numba calls to write the instructions of a function that returns nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        body(_Code(context, builder, signature, arguments))
        return context.get_dummy_value()

    return generate


def _multiply(rows: int) -> Any:
    """A function that computes 4 outputs of ``rows`` rows: ``(x @ weights.T * factors + biases)``."""

    def write(code: _Code) -> None:
        (weights, (_, groups, _)), (factors, _), (biases, _) = (code.array(n) for n in (0, 1, 2))
        (x, (_, inputs)), (out, (_, outputs)) = code.array(5), code.array(7)
        layer, group, row = (code.whole(n) for n in (3, 4, 6))
        kind, numbers = code.kinds[0].dtype, OUTPUTS_IN_TILE * INPUTS_IN_TILE
        tiles = code.at(
            weights, code.times(code.sum(code.times(layer, groups), group), code.times(inputs, OUTPUTS_IN_TILE))
        )
        rows_of_x = [code.at(x, code.times(code.sum(row, k), inputs)) for k in range(rows)]

        def tile(i: Any, *sums: Any) -> list[Any]:
            begin = code.at(tiles, code.times(i, OUTPUTS_IN_TILE))
            code.fetch(begin, numbers, kind)
            pairs, found = [code.load_row(code.at(of_row, i), 2) for of_row in rows_of_x], list(sums)
            for n in range(OUTPUTS_IN_TILE):
                wide = code.widened(kind, code.at(begin, n * INPUTS_IN_TILE))
                for k, pair in enumerate(pairs):
                    at = k * OUTPUTS_IN_TILE + n
                    found[at] = code.products(wide, pair, found[at])
            return found

        sums = code.loop(inputs, tile, [code.constant(0.0)] * (rows * OUTPUTS_IN_TILE), INPUTS_IN_TILE)
        result, four, builder = code.reduced(sums), Vectors(code.builder, OUTPUTS_IN_TILE), code.builder
        first = code.times(group, OUTPUTS_IN_TILE)
        of_layer = code.sum(code.times(layer, code.times(groups, OUTPUTS_IN_TILE)), first)
        factor, bias = (four.load(code.at(pointer, of_layer)) for pointer in (factors, biases))
        for k in range(rows):
            target = code.at(out, code.times(code.sum(row, k), outputs), first)
            before = builder.select(code.arguments[8], four.load(target), four.constant(0.0))
            part = code.picked(result, result, range(k * OUTPUTS_IN_TILE, (k + 1) * OUTPUTS_IN_TILE))
            four.store(builder.fadd(before, builder.fadd(builder.fmul(part, factor), bias)), target)

    def typed(
        typing_context: Any, weights: Any, factors: Any, biases: Any, layer: Any, group: Any, x: Any, row: Any,
        out: Any, keep: Any,
    ) -> Any:  # fmt: skip
        return types.void(weights, factors, biases, layer, group, x, row, out, keep), _writing(write)

    return intrinsic(typed)


multiply_one_row, multiply_two_rows = _multiply(1), _multiply(2)


@intrinsic
def score_steps(typing_context: Any, query: Any, keys: Any, bias: Any, head: Any, step: Any, scores: Any) -> Any:
    """``keys [capacity, d] @ query + bias[head]`` of :data:`STEPS_AT_ONCE` steps from ``step`` on, into ``scores``."""

    def write(code: _Code) -> None:
        (query, _), (keys, (_, width)), (bias, (_, steps)), (scores, _) = (code.array(n) for n in (0, 1, 2, 5))
        head, step = code.whole(3), code.whole(4)
        kind, columns = code.kinds[1].dtype, _columns(code.kinds[1].dtype)
        rows = [code.at(keys, code.times(code.sum(step, n), width)) for n in range(STEPS_AT_ONCE)]

        def part(column: Any, *sums: Any) -> list[Any]:
            # later steps line after line: so the processor recognises a stream, which doubles what a core reads
            code.fetch(code.at(rows[0], code.times(column, STEPS_AT_ONCE)), STEPS_AT_ONCE * columns, kind)
            wanted = code.floats(kind, code.at(query, column))
            return [
                code.products(code.cached(kind, code.at(row, column)), wanted, total)
                for row, total in zip(rows, sums, strict=True)
            ]

        sums = code.loop(width, part, [code.constant(0.0)] * STEPS_AT_ONCE, columns)
        group = Vectors(code.builder, STEPS_AT_ONCE)
        added = group.load(code.at(bias, code.times(head, steps), step))
        group.store(code.builder.fadd(code.reduced(sums), added), code.at(scores, step))

    return types.void(query, keys, bias, head, step, scores), _writing(write)


@intrinsic
def mix_steps(typing_context: Any, scores: Any, values: Any, step: Any, out: Any) -> Any:
    """Add ``scores @ values [capacity, d]`` of :data:`STEPS_AT_ONCE` steps from ``step`` on to ``out [d]``."""

    def write(code: _Code) -> None:
        (scores, _), (values, (_, width)), (out, _) = (code.array(n) for n in (0, 1, 3))
        kind, columns, step = code.kinds[1].dtype, _columns(code.kinds[1].dtype), code.whole(2)
        rows = [code.at(values, code.times(code.sum(step, n), width)) for n in range(STEPS_AT_ONCE)]
        weights = [code.spread(code.number(scores, step, n)) for n in range(STEPS_AT_ONCE)]

        def part(column: Any) -> None:
            code.fetch(code.at(rows[0], code.times(column, STEPS_AT_ONCE)), STEPS_AT_ONCE * columns, kind)
            totals = code.floats(kind, code.at(out, column))
            for row, weight in zip(rows, weights, strict=True):
                found = code.cached(kind, code.at(row, column))
                totals = [code.multiply_add(value, weight, total) for value, total in zip(found, totals, strict=True)]
            code.store_floats(kind, totals, code.at(out, column))

        code.loop(width, part, step=columns)

    return types.void(scores, values, step, out), _writing(write)


@intrinsic
def widen(typing_context: Any, value: Any) -> Any:
    """A number of the cache, float32 or bf16 as its 16 bits, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], INT), ir.Constant(INT, 16)), FLOAT)

    return types.float32(value), generate


@intrinsic
def narrow(typing_context: Any, value: Any, cache: Any) -> Any:
    """A float32 as ``cache`` keeps it; to bf16 it is rounded to the nearest, of two to the even one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[1].dtype == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], INT)
        odd = builder.and_(builder.lshr(bits, ir.Constant(INT, 16)), ir.Constant(INT, 1))
        bits = builder.add(bits, builder.add(odd, ir.Constant(INT, 0x7FFF)))
        return builder.trunc(builder.lshr(bits, ir.Constant(INT, 16)), ir.IntType(16))

    return cache.dtype(value, cache), generate


@intrinsic
def add_to(typing_context: Any, counters: Any, first: Any, second: Any, amount: Any) -> Any:
    """``counters[first, second, 0] += amount`` by one thread at a time; its value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder, signature, arguments)
        (pointer, (_, count, size)), (first, second, amount) = code.array(0), (code.whole(n) for n in (1, 2, 3))
        place = code.at(pointer, code.times(code.sum(code.times(first, count), second), size))
        return builder.atomic_rmw("add", place, amount, "seq_cst")

    return types.int64(counters, first, second, amount), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the processor that this thread waits for another one, where there is a way to."""

    def write(code: _Code) -> None:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            code.builder.call(cgutils.get_or_insert_function(code.builder.module, kind, "llvm.x86.sse2.pause"), [])

    return types.void(), _writing(write)
