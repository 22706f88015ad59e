"""The forward and the backward pass of attention with a learned bias, by the Triton kernels: what starts them.

The backward pass has a kernel for gradients of queries, one for those of keys and values, and one for the bias table:
each program writes results of its own, and those of the table are added in a fixed order, so that gradients are the
same in every run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.kernels.cuda.triton_blocks import Blocks, Kernel, padded
from hafm_lightning.kernels.tiles import TileList, TilePlan

LOG2_E = math.log2(math.e)
VISITS = 16
"""Look-ups that a program of the table's gradient adds up at least, where there are as many equal ones in a batch."""
LEVEL_QUERIES = 64
"""Queries of a program that computes levels."""


@dataclass(frozen=True)
class SpreadTable:
    """A bias table as the kernels read it, for scores as powers of two.

    Attributes:
        rows: Row of each head, float32 ``[H, R + 1]``; the last entry is -inf.
        lookup: The same in the type in which look-ups hold it: float16 beside inputs of 16 bits, also of bfloat16,
            which has 8 digits.
        biases: Look-ups of each plan, spread out; filled as they are asked for.
    """

    rows: Tensor
    lookup: Tensor
    biases: dict[tuple[int, int, bool], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Tensor, dtype: torch.dtype) -> SpreadTable:
        """From ``table [R + 1, H]``, for queries of a type."""
        rows = (table * LOG2_E).t().contiguous()
        return cls(rows, rows if dtype == torch.float32 else rows.half())

    def of_plan(self, plan: TilePlan, by_key: bool = False) -> Tensor:
        """As :meth:`TilePlan.biases`."""
        key = (plan.queries, plan.keys, by_key)
        if key not in self.biases:
            self.biases[key] = plan.biases(self.lookup, by_key)
        return self.biases[key]


def forward_pass(
    queries: Tensor, keys: Tensor, values: Tensor, table: SpreadTable, plan: TilePlan, blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """Output, and the logarithm (base 2) of each query's sum of weights.

    Args:
        queries: ``[B, H, S, d]``, the last dimension dense; keys and values likewise, of one type.
        keys: See there.
        values: See there.
        table: Bias table.
        plan: Classed tiles of the size that ``blocks`` has.
        blocks: Tiles of the forward kernel.

    Returns:
        Output as :func:`outputs_like`, and float32 ``[B * H, S]``.
    """
    from hafm_lightning.kernels.cuda.triton_attention_kernels import forward_kernel

    output, logarithms = outputs_like(queries)
    _launch(
        forward_kernel, "forward", plan, blocks, queries,
        [*_with_strides(queries, keys, values, output), logarithms, table.rows], table.of_plan(plan),
        [table.rows.shape[1], len(plan.patterns), LOG2_E / math.sqrt(queries.shape[-1])],
    )  # fmt: skip
    return output, logarithms


@dataclass(frozen=True)
class BackwardPass:
    """What the kernels of the backward pass read.

    Attributes:
        queries: ``[B, H, S, d]``, the last dimension dense; keys, values and ``gradient`` likewise, of one type.
        keys: See there.
        values: See there.
        gradient: Gradient of the output.
        logarithms: From :func:`forward_pass`.
        levels: Product of each query's output and gradient, float32 ``[B * H, S]``.
        table: Bias table.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    gradient: Tensor
    logarithms: Tensor
    levels: Tensor
    table: SpreadTable

    @classmethod
    def of(
        cls, gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, table: SpreadTable, output: Tensor,
        logarithms: Tensor,
    ) -> BackwardPass:  # fmt: skip
        """From the inputs and results of :func:`forward_pass`, and the gradient of its output."""
        from hafm_lightning.kernels.cuda.triton_attention_kernels import level_kernel

        batch, heads, steps, width = queries.shape
        gradient, levels = dense(gradient.to(queries.dtype)), torch.empty_like(logarithms)
        lines = -(-steps // LEVEL_QUERIES)
        if batch * heads:
            level_kernel[(lines * batch * heads,)](
                *_with_strides(output, gradient), levels, lines, heads, steps,
                HEAD=width, WIDTH=padded(width), QUERIES=LEVEL_QUERIES,
            )  # fmt: skip
        return cls(queries, keys, values, gradient, logarithms, levels, table)

    def by_query(self, plan: TilePlan, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Gradients of the queries, and of the table, float32 ``[R + 1, H]`` that lies in memory as ``[H, R + 1]``."""
        from hafm_lightning.kernels.cuda.triton_attention_kernels import query_gradient_kernel, table_gradient_kernel

        batch, heads, steps, width = self.queries.shape
        result, equal, rows = steps_first(self.queries), plan.equal_lookups, self.table.rows.shape[1]
        items, of_constant = len(equal.pattern), batch * plan.by_query.lines
        clips = max(1, min(batch, VISITS * items // max(1, len(equal.line))))
        of_lookups = -(-batch // clips) * items
        shares = self.table.rows.new_zeros(heads, of_constant + of_lookups, rows)
        numbers = [rows, len(plan.patterns), LOG2_E / math.sqrt(width)]
        _launch(
            query_gradient_kernel, "query_gradient", plan, blocks, self.queries,
            [*self._inputs, self.table.rows, result, *result.stride()[:3], shares], self.table.of_plan(plan),
            [*numbers, 1 / math.sqrt(width), shares.shape[1]],
        )  # fmt: skip
        if heads * of_lookups:
            table_gradient_kernel[(heads * of_lookups,)](
                *self._inputs, shares, *vars(equal).values(), self.table.of_plan(plan), plan.patterns,
                *plan.rows_of_patterns, items, heads, batch, clips, steps, *numbers, shares.shape[1], of_constant,
                HEAD=width, WIDTH=padded(width), QUERIES=blocks.queries, KEYS=blocks.keys,
                PRECISION=precision_of(self.queries.dtype), num_warps=blocks.warps, num_stages=blocks.lookup_stages,
            )  # fmt: skip
        return result, shares.sum(1, dtype=torch.float64).float().t()

    def by_key(self, plan: TilePlan, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Gradients of the keys and values."""
        from hafm_lightning.kernels.cuda.triton_attention_kernels import key_gradient_kernel

        width, of_keys, of_values = self.queries.shape[-1], steps_first(self.queries), steps_first(self.queries)
        _launch(
            key_gradient_kernel, "key_gradient", plan, blocks, self.queries,
            [*self._inputs, self.table.rows, of_keys, of_values, *of_keys.stride()[:3]],
            self.table.of_plan(plan, by_key=True),
            [self.table.rows.shape[1], len(plan.patterns), LOG2_E / math.sqrt(width), 1 / math.sqrt(width)],
        )  # fmt: skip
        return of_keys, of_values

    @property
    def _inputs(self) -> list[Any]:
        return [*_with_strides(self.queries, self.keys, self.values, self.gradient), self.logarithms, self.levels]


def outputs_like(queries: Tensor) -> tuple[Tensor, Tensor]:
    """Room for what :func:`forward_pass` returns."""
    batch, heads, steps, _ = queries.shape
    return steps_first(queries), queries.new_empty(batch * heads, steps, dtype=torch.float32)


def steps_first(like: Tensor) -> Tensor:
    """Room for ``[B, H, S, d]`` that lies in memory as ``[B, S, H, d]``: heads side by side for what follows."""
    batch, heads, steps, width = like.shape
    return like.new_empty(batch, steps, heads, width).transpose(1, 2)


def dense(x: Tensor) -> Tensor:
    """The same with the numbers of a head beside each other, which the kernels expect."""
    return x if x.stride(-1) == 1 else x.contiguous()


def precision_of(dtype: torch.dtype) -> str:
    """How a kernel multiplies numbers of a type: float32 as PyTorch is set to."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


def _launch(
    kernel: Any,
    name: Kernel,
    plan: TilePlan,
    blocks: Blocks,
    like: Tensor,
    tensors: list[Any],
    biases: Tensor,
    numbers: list[Any],
) -> None:
    """Start a program for each line of tiles of each head of each clip."""
    batch, heads, steps, width = like.shape
    if batch * heads == 0:
        return
    tiles: TileList = plan.by_key if name == "key_gradient" else plan.by_query
    *columns, order = vars(tiles).values()
    kernel[(tiles.lines * batch * heads,)](
        *tensors, order, *columns, biases, tiles.lines, heads, steps, *numbers,
        HEAD=width, WIDTH=padded(width), QUERIES=blocks.queries, KEYS=blocks.keys, PRECISION=precision_of(like.dtype),
        AHEAD=blocks.lookup_stages, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def _with_strides(*tensors: Tensor) -> list[Any]:
    return [x for each in tensors for x in (each, *each.stride()[:3])]
