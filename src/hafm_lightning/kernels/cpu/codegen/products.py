"""Products of small matrices whose sums stay in registers, and transposition, for :class:`VectorCode`.

A few rows of the left matrix are taken at once: each of their numbers is spread over a vector and meets a few vectors
of a row of the right matrix. The caller chooses what the sums begin with and receives them while they are in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from hafm_lightning.kernels.cpu.codegen.vector_code import INT, Sums, VectorCode

ROWS_AT_ONCE = 4
"""Rows whose sums are kept in registers."""
_UNROLLED = 4  # columns of the left matrix in one turn of the innermost loop


def product(
    code: VectorCode,
    left: tuple[Any, int, int],
    right: tuple[Any, int],
    size: tuple[int, int, int],
    start: Callable[[Any, Any, int], Sums],
    finish: Callable[..., Sequence[Any] | None],
    carried: Any = None,
) -> None:
    """Write ``left [I, R] @ right [R, J]``.

    Args:
        code: Function that is written.
        left: Pointer, distance of rows and distance of columns.
        right: Pointer and distance of rows, which are contiguous.
        size: ``I``, ``J`` and ``R``: multiples of 4, of the lanes and of 4.
        start: ``(first row, first column, vectors)`` -> what the sums begin with.
        finish: ``(first row, first column, sums)`` and, with ``carried``, the vectors there -> the new ones.
        carried: Pointer to ``[J]``, which is read before and written after the product.
    """
    (pointer, row_step, column_step), (other, other_step), (height, width, depth) = left, right, size
    vectors = next(n for n in range(code.vectors, 0, -1) if not width % (n * code.lanes))

    def columns(column: Any) -> None:
        def rows(row: Any, *states: Any) -> Sequence[Any] | None:
            places = [code.at(pointer, code.times(row, row_step), i * row_step) for i in range(ROWS_AT_ONCE)]

            def turn(r: Any, *sums: Any) -> list[Any]:
                found = list(sums)
                for u in range(_UNROLLED):
                    here = code.at(other, column, code.times(r, other_step), u * other_step)
                    held = code.load_row(here, vectors)
                    for i, place in enumerate(places):
                        factor = code.spread(code.number(place, code.times(r, column_step), u * column_step))
                        for at, vector in enumerate(held, i * vectors):
                            found[at] = code.multiply_add(factor, vector, found[at])
                return found

            begun = [value for of_row in start(row, column, vectors) for value in of_row]
            found = code.loop(depth, turn, begun, _UNROLLED)
            sums = [found[at : at + vectors] for at in range(0, len(found), vectors)]
            return finish(row, column, sums, *states)

        if carried is None:
            code.loop(height, rows, step=ROWS_AT_ONCE)
            return
        held = code.at(carried, column)
        code.store_row(code.loop(height, rows, code.load_row(held, vectors), ROWS_AT_ONCE), held)

    code.loop(width, columns, step=vectors * code.lanes)


def row_pointers(code: VectorCode, matrix: Any, width: int, row: Any, column: Any) -> list[Any]:
    """Where a product's rows from ``row`` on have ``column`` in a matrix ``[I, width]``."""
    return [code.at(matrix, code.times(code.sum(row, i), width), column) for i in range(ROWS_AT_ONCE)]


def adding(code: VectorCode, target: Any, width: int, factors: Any = None) -> Callable[[Any, Any, int], Sums]:
    """The sums begin with what ``target [I, width]`` holds, times ``factors [I]``."""

    def start(row: Any, column: Any, vectors: int) -> Sums:
        sums = [code.load_row(place, vectors) for place in row_pointers(code, target, width, row, column)]
        if factors is None:
            return sums
        spread = [code.spread(code.number(factors, row, i)) for i in range(ROWS_AT_ONCE)]
        return [[code.multiply(value, factor) for value in values] for values, factor in zip(sums, spread, strict=True)]

    return start


def storing(code: VectorCode, target: Any, width: int) -> Callable[[Any, Any, Sums], None]:
    """The sums become ``target [I, width]``."""

    def finish(row: Any, column: Any, sums: Sums) -> None:
        for values, place in zip(sums, row_pointers(code, target, width, row, column), strict=True):
            code.store_row(values, place)

    return finish


def transpose(code: VectorCode, source: Any, target: Any, size: tuple[int, int], factor: Any) -> None:
    """``target [J, I] = source [I, J].T * factor`` of ``size`` (I, J), multiples of the lanes; ``factor`` a vector."""
    height, width = size
    lanes = range(code.lanes)
    whole = ir.VectorType(INT, code.lanes)

    def block(row: Any, column: Any) -> None:
        begin = code.at(source, code.times(row, width), column)
        held = [code.multiply(code.load(begin, n * width), factor) for n in lanes]
        distance = 1
        while distance < code.lanes:  # exchange what lies one, two, four ... from the diagonal
            lower = [lane - distance + code.lanes if lane & distance else lane for lane in lanes]
            upper = [lane + code.lanes if lane & distance else lane + distance for lane in lanes]
            for n in lanes:
                if not n & distance:
                    pair = held[n], held[n + distance]
                    held[n], held[n + distance] = (
                        code.builder.shuffle_vector(*pair, ir.Constant(whole, mask)) for mask in (lower, upper)
                    )
            distance *= 2
        for n, vector in enumerate(held):
            code.store(vector, code.at(target, code.times(column, height), row), n * height)

    code.vectors_of(height, lambda row: code.vectors_of(width, lambda column: block(row, column)))
