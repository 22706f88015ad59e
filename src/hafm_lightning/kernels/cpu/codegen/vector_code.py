"""Loops over vectors, written as LLVM's instructions.

Sums are made in the order in which they are written here: LLVM may join a product and a sum, and nothing else. So a
function's results are the same whenever it runs on the same processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from hafm_lightning.kernels.cpu.codegen.machine_code import CompiledFunction, compiled, vector_shape

FLOAT, DOUBLE, INT, LONG, BYTE = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
Sums = list[list[Any]]
"""Vectors of each of some rows."""
_FUSED = ("contract",)
_ROUNDING = 12582912.0  # 1.5 * 2^23: added to a small number, it leaves the nearest whole one in the low bits
_EXP2 = (1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1)
"""Cephes' polynomial for 2^x - 1 between -1/2 and 1/2, less its last coefficient."""
_LN2 = 6.931472028550421e-1
_LEAST_EXPONENT = -126.0


def long(value: int) -> Any:
    """A constant of 64 bits."""
    return ir.Constant(LONG, value)


class Vectors:
    """Writes instructions on vectors of ``lanes`` floats; pointers are to float32 unless stated otherwise."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector, self._whole_vector = ir.VectorType(FLOAT, lanes), ir.VectorType(INT, lanes)

    # Numbers and memory

    def constant(self, value: float) -> Any:
        """A vector of one number."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def sum(self, *values: Any) -> Any:
        """Sum of whole numbers, of Python or of the function."""
        first, *others = (long(value) if isinstance(value, int) else value for value in values)
        for value in others:
            first = self.builder.add(first, value)
        return first

    def times(self, a: Any, b: Any) -> Any:
        """Product of whole numbers."""
        return self.builder.mul(self.sum(a), self.sum(b))

    def smaller(self, a: Any, b: Any) -> Any:
        """The smaller of two whole numbers."""
        a, b = self.sum(a), self.sum(b)
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def at(self, pointer: Any, *indices: Any) -> Any:
        """The pointer moved by the sum of ``indices``."""
        return self.builder.gep(pointer, [self.sum(*indices)])

    def number(self, pointer: Any, *indices: Any) -> Any:
        """The one value there."""
        return self.builder.load(self.at(pointer, *indices))

    def load(self, pointer: Any, offset: int = 0) -> Any:
        """The vector at ``pointer``."""
        return self.builder.load(self._place(pointer, offset), align=4)

    def store(self, value: Any, pointer: Any, offset: int = 0) -> None:
        """Write a vector."""
        self.builder.store(value, self._place(pointer, offset), align=4)

    def load_row(self, pointer: Any, vectors: int) -> list[Any]:
        """Vectors after each other."""
        return [self.load(pointer, v * self.lanes) for v in range(vectors)]

    def store_row(self, values: Sequence[Any], pointer: Any) -> None:
        """Write vectors after each other."""
        for v, value in enumerate(values):
            self.store(value, pointer, v * self.lanes)

    def _place(self, pointer: Any, offset: int) -> Any:
        return self.builder.bitcast(self.at(pointer, offset), self.vector.as_pointer())

    def spread(self, value: Any) -> Any:
        """A vector of one value."""
        empty = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(one, empty, ir.Constant(self._whole_vector, [0] * self.lanes))

    # Arithmetic

    def add(self, a: Any, b: Any) -> Any:
        """``a + b``."""
        return self.builder.fadd(a, b, flags=_FUSED)

    def subtract(self, a: Any, b: Any) -> Any:
        """``a - b``."""
        return self.builder.fsub(a, b, flags=_FUSED)

    def multiply(self, a: Any, b: Any) -> Any:
        """``a * b``."""
        return self.builder.fmul(a, b, flags=_FUSED)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """``a * b + c``, rounded once where the processor can."""
        return self.add(self.multiply(a, b), c)

    def larger(self, a: Any, b: Any) -> Any:
        """The larger one; ``b`` if ``a`` is no number."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def exp2(self, x: Any) -> Any:
        """``2^x`` for ``x`` of at most 126 or so, to 2e-7 of itself; 0 below the smallest normal number."""
        shifted = self.builder.fadd(x, self.constant(_ROUNDING))
        rest = self.builder.fsub(x, self.builder.fsub(shifted, self.constant(_ROUNDING)))
        result = self.constant(_EXP2[0])
        for coefficient in (*_EXP2[1:], _LN2, 1.0):
            result = self.multiply_add(result, rest, self.constant(coefficient))
        exponent = self.builder.shl(
            self.builder.bitcast(shifted, self._whole_vector), ir.Constant(self._whole_vector, [23] * self.lanes)
        )
        result = self.builder.add(self.builder.bitcast(result, self._whole_vector), exponent)
        counts = self.builder.fcmp_unordered(">", x, self.constant(_LEAST_EXPONENT))  # or is no number, and stays so
        return self.builder.select(counts, self.builder.bitcast(result, self.vector), self.constant(0.0))

    def total(self, value: Any) -> Any:
        """The sum of a vector's lanes, in halves."""
        count = self.lanes
        while count > 1:
            count //= 2
            low, high = (ir.Constant(ir.VectorType(INT, count), list(range(at, at + count))) for at in (0, count))
            low, high = (self.builder.shuffle_vector(value, value, part) for part in (low, high))
            value = self.builder.fadd(low, high)
        return self.builder.extract_element(value, ir.Constant(INT, 0))

    # Loops

    def loop(self, count: Any, body: Callable[..., Any], carried: Sequence[Any] = (), step: int = 1) -> list[Any]:
        """``for index in range(0, count, step)``; ``body(index, *carried)`` returns what is carried on.

        A ``count`` that is known must not be 0.
        """
        builder, known = self.builder, isinstance(count, int)
        before = builder.block
        inside, after = builder.append_basic_block(), builder.append_basic_block()
        count = self.sum(count)
        if known:
            builder.branch(inside)
        else:
            builder.cbranch(builder.icmp_signed(">", count, long(0)), inside, after)
        builder.position_at_end(inside)
        index = builder.phi(LONG)
        index.add_incoming(long(0), before)
        states = [builder.phi(value.type) for value in carried]
        for state, value in zip(states, carried, strict=True):
            state.add_incoming(value, before)
        found = body(index, *states) or ()
        end, following = builder.block, builder.add(index, long(step))
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        index.add_incoming(following, end)
        for state, value in zip(states, found, strict=True):
            state.add_incoming(value, end)
        builder.position_at_end(after)
        results = [builder.phi(value.type) for value in carried]
        for result, value, first in zip(results, found, carried, strict=True):
            result.add_incoming(value, end)
            if not known:
                result.add_incoming(first, before)
        return results

    def vectors_of(self, count: Any, body: Callable[[Any], None]) -> None:
        """``body(index)`` of each vector of ``count`` floats, a multiple of the lanes."""
        self.loop(count, body, step=self.lanes)

    def copy(self, source: Any, target: Any, count: Any, factor: Any = None) -> None:
        """``target = source`` (times a vector ``factor``) of ``count`` floats, a multiple of the lanes."""

        def one(n: Any) -> None:
            value = self.load(self.at(source, n))
            self.store(value if factor is None else self.multiply(value, factor), self.at(target, n))

        self.vectors_of(count, one)

    def fill(self, target: Any, count: Any, value: float = 0.0) -> None:
        """Set ``count`` floats, a multiple of the lanes."""
        self.vectors_of(count, lambda n: self.store(self.constant(value), self.at(target, n)))


class VectorCode(Vectors):
    """Writes one function ``void name(int64 *arguments)``; its arguments have names too."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        kind = ir.FunctionType(ir.VoidType(), [LONG.as_pointer()])
        self.function = ir.Function(ir.Module(name), kind, name)
        self.names = arguments
        lanes, self.vectors = vector_shape()  # vectors of a row that a product of matrices sums at once, at most
        super().__init__(ir.IRBuilder(self.function.append_basic_block()), lanes)

    def _argument(self, name: str) -> Any:
        return self.at(self.function.args[0], self.names.index(name))

    def value(self, name: str) -> Any:
        """The whole number that is given as ``name``."""
        return self.builder.load(self._argument(name))

    def pointer(self, name: str, kind: Any = FLOAT) -> Any:
        """The address of values that is given as ``name``."""
        return self.builder.inttoptr(self.value(name), kind.as_pointer())

    def counter(self, name: str) -> Any:
        """Raise the argument by one for all threads; its value before."""
        return self.builder.atomic_rmw("add", self._argument(name), long(1), "monotonic")

    def tasks(self, count: Any, body: Callable[[Any], None]) -> None:
        """``body(number)`` of task after task up to ``count``, by ``task``, a counter that all threads share."""
        builder = self.builder
        taking, inside, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(taking)
        builder.position_at_end(taking)
        task = self.counter("task")
        builder.cbranch(builder.icmp_signed("<", task, count), inside, after)
        builder.position_at_end(inside)
        body(task)
        builder.branch(taking)
        builder.position_at_end(after)

    def compiled(self) -> CompiledFunction:
        """The function in machine code; nothing can be written afterwards."""
        self.builder.ret_void()
        return compiled(self.function)
