"""The innermost parts of the compiled step, written in LLVM's vectors: products of matrices, and waiting for threads.

Left to itself the compiler reads four rows of weights in turn, and a core then reaches a third of what the memory
gives. Here the weights lie in the order in which they are read (:func:`tiled`), are fetched ahead, and two bf16
weights widen to float32 by one shift and one mask. LLVM fits the vectors to those of the processor at hand.

Numba's cache on disk does not notice changes of this file; ``TILES_CHECKSUM`` in `step_kernel.py` makes it notice.
Imported only where it is used: Numba is slow to import.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array as untyped_make_array
from torch import Tensor

cgutils: Any = untyped_cgutils
make_array: Any = untyped_make_array

OUTPUTS_IN_TILE = 4
"""Outputs that share one reading of the inputs."""
LANES = 16
"""Sums that each output is made of, until the last step."""
INPUTS_IN_TILE = 2 * LANES
"""Inputs at a time; their number must be a multiple of this."""
FETCH_AHEAD_BYTES = 8192
"""How far ahead of its use memory is asked for."""
STEPS_AT_ONCE = 8
"""Steps of the cache that are scored or mixed together."""

_FLOAT, _INT, _LONG, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FUSED = ("contract",)
_LINE_BYTES = 64


def tiled(weights: Tensor) -> Tensor:
    """Weights ``[layers, out, in]`` in the order in which they are read, ``[layers, out / 4, 4 in]``.

    Each 32 inputs of 4 outputs lie together. Of bf16 weights (given as uint16), inputs 16 apart share 32 bits.
    """
    layers, outputs, inputs = weights.shape
    tiles = weights.view(layers, outputs // OUTPUTS_IN_TILE, OUTPUTS_IN_TILE, inputs // INPUTS_IN_TILE, 2, LANES)
    order = (0, 1, 3, 2, 5, 4) if weights.dtype == torch.uint16 else (0, 1, 3, 2, 4, 5)
    return tiles.permute(order).reshape(layers, outputs // OUTPUTS_IN_TILE, OUTPUTS_IN_TILE * inputs).contiguous()


def _at(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    """Pointer to ``kind`` at element ``index``."""
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())


def _long(value: int) -> Any:
    return ir.Constant(_LONG, value)


def _splat(kind: Any, value: Any) -> Any:
    return ir.Constant(ir.VectorType(kind, LANES), [value] * LANES)


def _widened(builder: Any, kind: Any, pointer: Any, index: Any) -> tuple[Any, Any]:
    """32 weights of one output from element ``index`` on, as two float32 vectors."""
    if kind == types.uint16:
        words = builder.load(_at(builder, pointer, index, ir.VectorType(_INT, LANES)), align=2)
        low, high = builder.shl(words, _splat(_INT, 16)), builder.and_(words, _splat(_INT, 0xFFFF0000))
        return builder.bitcast(low, _VECTOR), builder.bitcast(high, _VECTOR)
    places = index, builder.add(index, _long(LANES))
    if kind == types.float32:
        low, high = (builder.load(_at(builder, pointer, place, _VECTOR), align=4) for place in places)
        return low, high
    small = ir.VectorType(_BYTE, LANES)
    low, high = (
        builder.sitofp(builder.load(_at(builder, pointer, place, small), align=1), _VECTOR) for place in places
    )
    return low, high


def _ask_for(builder: Any, pointer: Any) -> None:
    """Have a line of memory brought nearer; the address need not be valid."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, *(ir.Constant(_INT, value) for value in (0, 3, 1))])  # to read, to keep, data


def _fetch(builder: Any, pointer: Any, index: Any, count: int, size: int) -> None:
    """Ask for the ``count`` elements of ``size`` bytes that come :data:`FETCH_AHEAD_BYTES` after ``index``."""
    begin = _at(builder, pointer, index, _BYTE)
    for offset in range(FETCH_AHEAD_BYTES, FETCH_AHEAD_BYTES + count * size, _LINE_BYTES):
        _ask_for(builder, builder.gep(begin, [_long(offset)]))


def _fetch_steps(builder: Any, pointer: Any, begin: Any, turn: Any, columns: int, size: int) -> None:
    """Ask, at turn ``turn`` of a loop over ``columns`` at a time, for the next part of later steps, line after line.

    In this order the processor recognises a stream, which doubles what a core reads.
    """
    part = STEPS_AT_ONCE * columns
    _fetch(builder, pointer, builder.add(begin, builder.mul(turn, _long(part))), part, size)


def _columns(kind: Any) -> int:
    """Columns of the cache that are read at a time: 16 float32, or 32 bf16 in as many bytes."""
    return 2 * LANES if kind == types.uint16 else LANES


def _cached_values(builder: Any, kind: Any, pointer: Any, index: Any) -> list[Any]:
    """:func:`_columns` numbers from element ``index`` on, as float32 vectors: of bf16 the even ones, then the odd."""
    if kind == types.uint16:
        return list(_widened(builder, kind, pointer, index))
    return [builder.load(_at(builder, pointer, index, _VECTOR), align=4)]


def _float_values(builder: Any, kind: Any, pointer: Any, index: Any) -> list[Any]:
    """As many float32 from element ``index`` on, in the order in which :func:`_cached_values` gives them."""
    if kind != types.uint16:
        return [builder.load(_at(builder, pointer, index, _VECTOR), align=4)]
    places = index, builder.add(index, _long(LANES))
    low, high = (builder.load(_at(builder, pointer, place, _VECTOR), align=4) for place in places)
    return [_picked(builder, low, high, range(first, 2 * LANES, 2)) for first in (0, 1)]


def _store_floats(builder: Any, kind: Any, pointer: Any, index: Any, vectors: list[Any]) -> None:
    """Inverse of :func:`_float_values`."""
    if kind == types.uint16:
        both = [[half // 2 + LANES * (half % 2) for half in range(at, at + LANES)] for at in (0, LANES)]
        vectors = [_picked(builder, vectors[0], vectors[1], order) for order in both]
    for number, vector in enumerate(vectors):
        place = builder.add(index, _long(number * LANES))
        builder.store(vector, _at(builder, pointer, place, _VECTOR), align=4)


def _picked(builder: Any, first: Any, second: Any, order: Any) -> Any:
    """Elements of two vectors after each other, in an order."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT, len(order)), list(order)))


def _reduced(builder: Any, vectors: list[Any]) -> Any:
    """The sums of each of 4 or 8 vectors, as one vector of 4 or 8: neighbours are added, again and again."""
    count, left = len(vectors), LANES
    while len(vectors) > 1:
        vectors = [_neighbours(builder, vectors[i], vectors[i + 1], LANES) for i in range(0, len(vectors), 2)]
    result = vectors[0]  # each sum is still in LANES / count parts, one after the other
    while left > count:
        left //= 2
        result = _neighbours(builder, result, result, left)
    return result


def _neighbours(builder: Any, first: Any, second: Any, count: int) -> Any:
    """The first ``count`` sums of neighbours in two vectors, those of the first before those of the second."""
    even, odd = (ir.Constant(ir.VectorType(_INT, count), list(range(at, 2 * count, 2))) for at in (0, 1))
    return builder.fadd(builder.shuffle_vector(first, second, even), builder.shuffle_vector(first, second, odd))


def _multiply(rows: int) -> Any:
    """A function that computes 4 outputs of ``rows`` rows: ``(x @ weights.T * factors + biases)``."""

    def typed(
        typing_context: Any, weights: Any, factors: Any, biases: Any, layer: Any, group: Any, x: Any, row: Any,
        out: Any, keep: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            arrays = {i: make_array(kinds[i])(context, builder, arguments[i]) for i in (0, 1, 2, 5, 7)}
            layer, group, row = (context.cast(builder, arguments[i], kinds[i], types.int64) for i in (3, 4, 6))
            inputs = cgutils.unpack_tuple(builder, arrays[5].shape)[1]
            outputs = cgutils.unpack_tuple(builder, arrays[7].shape)[1]
            groups = cgutils.unpack_tuple(builder, arrays[0].shape)[1]
            tile, size = OUTPUTS_IN_TILE * INPUTS_IN_TILE, kinds[0].dtype.bitwidth // 8
            base = builder.mul(
                builder.add(builder.mul(layer, groups), group), builder.mul(inputs, _long(OUTPUTS_IN_TILE))
            )
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(rows * OUTPUTS_IN_TILE)]
            for place in sums:
                builder.store(_splat(_FLOAT, 0.0), place)
            with cgutils.for_range(builder, builder.udiv(inputs, _long(INPUTS_IN_TILE))) as loop:
                begin = builder.add(base, builder.mul(loop.index, _long(tile)))
                _fetch(builder, arrays[0].data, begin, tile, size)
                pairs = []
                for k in range(rows):
                    place = builder.mul(builder.add(row, _long(k)), inputs)
                    place = builder.add(place, builder.mul(loop.index, _long(INPUTS_IN_TILE)))
                    both = place, builder.add(place, _long(LANES))
                    pairs.append([builder.load(_at(builder, arrays[5].data, at, _VECTOR), align=4) for at in both])
                for n in range(OUTPUTS_IN_TILE):
                    index = builder.add(begin, _long(n * INPUTS_IN_TILE))
                    wide = _widened(builder, kinds[0].dtype, arrays[0].data, index)
                    for k, pair in enumerate(pairs):
                        total = builder.load(sums[k * OUTPUTS_IN_TILE + n])
                        for w, v in zip(wide, pair, strict=True):
                            total = builder.fadd(total, builder.fmul(w, v, flags=_FUSED), flags=_FUSED)
                        builder.store(total, sums[k * OUTPUTS_IN_TILE + n])
            result = _reduced(builder, [builder.load(place) for place in sums])
            four = ir.VectorType(_FLOAT, OUTPUTS_IN_TILE)
            first = builder.mul(group, _long(OUTPUTS_IN_TILE))
            of_layer = builder.add(builder.mul(layer, builder.mul(groups, _long(OUTPUTS_IN_TILE))), first)
            factor, bias = (builder.load(_at(builder, arrays[i].data, of_layer, four), align=4) for i in (1, 2))
            for k in range(rows):
                part = ir.Constant(
                    ir.VectorType(_INT, OUTPUTS_IN_TILE), [k * OUTPUTS_IN_TILE + n for n in range(OUTPUTS_IN_TILE)]
                )
                place = builder.add(builder.mul(builder.add(row, _long(k)), outputs), first)
                target = _at(builder, arrays[7].data, place, four)
                before = builder.select(
                    arguments[8], builder.load(target, align=4), ir.Constant(four, [0.0] * OUTPUTS_IN_TILE)
                )
                found = builder.fmul(builder.shuffle_vector(result, result, part), factor)
                builder.store(builder.fadd(before, builder.fadd(found, bias)), target, align=4)
            return context.get_dummy_value()

        return types.void(weights, factors, biases, layer, group, x, row, out, keep), generate

    return intrinsic(typed)


multiply_one_row, multiply_two_rows = _multiply(1), _multiply(2)


def _score_steps(typing_context: Any, query: Any, keys: Any, bias: Any, head: Any, step: Any, scores: Any) -> Any:
    """``keys [capacity, d] @ query + bias[head]`` of :data:`STEPS_AT_ONCE` steps from ``step`` on, into ``scores``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        arrays = {i: make_array(kinds[i])(context, builder, arguments[i]) for i in (0, 1, 2, 5)}
        kind, columns = kinds[1].dtype, _columns(kinds[1].dtype)
        head, step = (context.cast(builder, arguments[i], kinds[i], types.int64) for i in (3, 4))
        width = cgutils.unpack_tuple(builder, arrays[1].shape)[1]
        places = [builder.mul(builder.add(step, _long(n)), width) for n in range(STEPS_AT_ONCE)]
        sums = [cgutils.alloca_once(builder, _VECTOR) for _ in places]
        for total in sums:
            builder.store(_splat(_FLOAT, 0.0), total)
        with cgutils.for_range(builder, builder.udiv(width, _long(columns))) as loop:
            column = builder.mul(loop.index, _long(columns))
            _fetch_steps(builder, arrays[1].data, places[0], loop.index, columns, kind.bitwidth // 8)
            asked = _float_values(builder, kind, arrays[0].data, column)
            for place, total in zip(places, sums, strict=True):
                found = builder.load(total)
                held = _cached_values(builder, kind, arrays[1].data, builder.add(place, column))
                for key, query in zip(held, asked, strict=True):
                    found = builder.fadd(found, builder.fmul(key, query, flags=_FUSED), flags=_FUSED)
                builder.store(found, total)
        result = _reduced(builder, [builder.load(total) for total in sums])
        group = ir.VectorType(_FLOAT, STEPS_AT_ONCE)
        first = builder.add(builder.mul(head, cgutils.unpack_tuple(builder, arrays[2].shape)[1]), step)
        result = builder.fadd(result, builder.load(_at(builder, arrays[2].data, first, group), align=4))
        builder.store(result, _at(builder, arrays[5].data, step, group), align=4)
        return context.get_dummy_value()

    return types.void(query, keys, bias, head, step, scores), generate


def _mix_steps(typing_context: Any, scores: Any, values: Any, step: Any, out: Any) -> Any:
    """Add ``scores @ values [capacity, d]`` of :data:`STEPS_AT_ONCE` steps from ``step`` on to ``out [d]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        weights, held, out = (make_array(kinds[i])(context, builder, arguments[i]) for i in (0, 1, 3))
        kind, columns = kinds[1].dtype, _columns(kinds[1].dtype)
        step = context.cast(builder, arguments[2], kinds[2], types.int64)
        width = cgutils.unpack_tuple(builder, held.shape)[1]
        steps = [builder.add(step, _long(n)) for n in range(STEPS_AT_ONCE)]
        empty, nowhere = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
        spread = []
        for place in steps:
            one = builder.load(_at(builder, weights.data, place, _FLOAT))
            one = builder.insert_element(empty, one, ir.Constant(_INT, 0))
            spread.append(builder.shuffle_vector(one, empty, nowhere))
        with cgutils.for_range(builder, builder.udiv(width, _long(columns))) as loop:
            column = builder.mul(loop.index, _long(columns))
            _fetch_steps(builder, held.data, builder.mul(step, width), loop.index, columns, kind.bitwidth // 8)
            totals = _float_values(builder, kind, out.data, column)
            for place, weight in zip(steps, spread, strict=True):
                found = _cached_values(builder, kind, held.data, builder.add(builder.mul(place, width), column))
                for number, value in enumerate(found):
                    product = builder.fmul(value, weight, flags=_FUSED)
                    totals[number] = builder.fadd(totals[number], product, flags=_FUSED)
            _store_floats(builder, kind, out.data, column, totals)
        return context.get_dummy_value()

    return types.void(scores, values, step, out), generate


score_steps: Any = intrinsic(_score_steps)
mix_steps: Any = intrinsic(_mix_steps)


def _widen(typing_context: Any, value: Any) -> Any:
    """A number of the cache, float32 or bf16 as its 16 bits, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], _INT), ir.Constant(_INT, 16)), _FLOAT)

    return types.float32(value), generate


def _narrow(typing_context: Any, value: Any, cache: Any) -> Any:
    """A float32 as ``cache`` keeps it; to bf16 it is rounded to the nearest, of two to the even one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[1].dtype == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], _INT)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_INT, 16)), ir.Constant(_INT, 1))
        bits = builder.add(bits, builder.add(odd, ir.Constant(_INT, 0x7FFF)))
        return builder.trunc(builder.lshr(bits, ir.Constant(_INT, 16)), ir.IntType(16))

    return cache.dtype(value, cache), generate


widen: Any = intrinsic(_widen)
narrow: Any = intrinsic(_narrow)


def _add_to(typing_context: Any, counters: Any, first: Any, second: Any, amount: Any) -> Any:
    """``counters[first, second, 0] += amount`` by one thread at a time; what was there before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, arguments[0])
        shape = cgutils.unpack_tuple(builder, array.shape)
        first, second, amount = (
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(arguments[1:], signature.args[1:], strict=True)
        )
        line = builder.mul(builder.add(builder.mul(first, shape[1]), second), shape[2])
        return builder.atomic_rmw("add", builder.gep(array.data, [line]), amount, "seq_cst")

    return types.int64(counters, first, second, amount), generate


def _pause(typing_context: Any) -> Any:
    """Tell the processor that this thread waits for another one, where there is a way to."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


add_to: Any = intrinsic(_add_to)
pause: Any = intrinsic(_pause)
