"""Attention with a learned relative bias on CUDA, by Triton kernels over classed tiles; for training and inference.

Nearly all tiles of scores have one bias (:mod:`hafm_lightning.kernels.tiles`), so these kernels cost little more than
attention without bias. Lengths are arguments: nothing is compiled for a new one. Choices:

* **What stands behind them**: smaller tiles, then FlexAttention (training) or PyTorch's operations in blocks of queries
  (inference, where compiling FlexAttention for each of a few lengths would take longer than the take). One line warns
  of each change.
* **A setting is tried before it is used**, forward and backward, on zeros: :mod:`.triton_blocks` has the sizes.
* **Gradients are the same in every run**: two passes for the backward, of which each program writes its own results;
  table gradients are summed for each program, and then over programs in a fixed order.

Under ``TRITON_INTERPRET=1`` the same code runs on a CPU, for tests.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cuda.flex_attention import FlexBias
from hafm_lightning.kernels.cuda.flex_tiles import build_failure
from hafm_lightning.kernels.cuda.triton_blocks import Blocks, Chip, Kernel, Setting, padded, unusable
from hafm_lightning.kernels.tiles import TileList, TilePlan
from hafm_lightning.modeling.attention import SequenceBias
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

LOG2_E = math.log2(math.e)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class TritonBias:
    """Mask and bias of the ``positions`` of a sequence after ``module``; a plan of tiles for each size in use."""

    module: RelativePosition
    positions: StepPositions
    plans: dict[tuple[int, int], TilePlan] = field(default_factory=dict)

    @classmethod
    def of(cls, module: RelativePosition, positions: StepPositions) -> TritonBias:
        """Mask and bias of a sequence on the device of ``positions``."""
        return cls(module, positions)

    def plan(self, blocks: Blocks) -> TilePlan:
        """The plan for tiles of one size."""
        size = (blocks.queries, blocks.keys)
        if size not in self.plans:
            self.plans[size] = TilePlan.of(self.module, self.positions, *size)
        return self.plans[size]

    @cached_property
    def plain(self) -> SequenceBias:
        """The same for PyTorch's operations."""
        with torch.inference_mode(False):  # is cached and must serve training too, wherever it was first made
            return RelativePosition.sequence_bias(self.module, self.positions)

    @cached_property
    def flex(self) -> SequenceBias:
        """The same for FlexAttention."""
        with torch.inference_mode(False):
            return FlexBias.of(self.module, self.positions)

    # a compiled layer calls it between two graphs
    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend`, with sums in float32.

        Raises:
            ValueError: Inputs of another number of steps.
        """
        if queries.shape[-2] != self.positions.steps:
            raise ValueError(f"these biases are for {self.positions.steps} steps, not for {queries.shape[-2]}")
        training = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, values, table))
        inputs = _alike(queries, keys, values)
        setting = settings.of(inputs[0], training)
        if setting is None:
            behind = self.flex if training and queries.device.type == "cuda" else self.plain
            return behind.attend(queries, keys, values, table)
        # the graph is built here or not at all: autocast must not touch the table
        with torch.autocast(queries.device.type, enabled=False):
            output: Tensor = _TritonAttention.apply(*inputs, table.float(), self, setting)  # type: ignore[no-untyped-call]
        return output.to(values.dtype)


def _alike(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in one type that the kernels know, with the numbers of a head beside each other."""
    dtypes = {x.dtype for x in inputs}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    # Triton's interpreter has no products of bfloat16: it multiplies the bits as whole numbers
    products = DTYPES if inputs[0].device.type == "cuda" else (torch.float16, torch.float32)
    dtype = dtype if dtype in products else torch.float32
    converted = (x.to(dtype) for x in inputs)
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in converted)


class TritonRelativePosition(Twin, RelativePosition):
    """A relative position whose sequences attend by Triton kernels, on CUDA (or in Triton's interpreter)."""

    def sequence_bias(self, positions: StepPositions) -> SequenceBias:
        """As :meth:`RelativePosition.sequence_bias`."""
        return TritonBias.of(self, positions)


def precision_of(dtype: torch.dtype) -> str:
    """How a kernel multiplies numbers of a type: float32 as PyTorch is set to."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


class _TritonAttention(torch.autograd.Function):
    """Gradients for queries, keys, values and the bias table."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, bias: TritonBias, setting: Setting
    ) -> Tensor:
        from hafm_lightning.kernels.cuda.triton_attention_kernels import forward_kernel

        blocks, (batch, heads, steps, width) = setting.tiles["forward"], queries.shape
        output = _steps_first(queries)
        logarithms = queries.new_empty(batch * heads, steps, dtype=torch.float32)
        plan = bias.plan(blocks)
        given = [x for each in (queries, keys, values, output) for x in (each, *each.stride()[:3])]
        _launch(
            forward_kernel, plan.by_query, blocks, queries,
            [*given, logarithms, _powers_of_two(table)],
            [*vars(plan.by_query).values(), plan.patterns],
            [table.shape[0], LOG2_E / math.sqrt(width)],
        )  # fmt: skip
        ctx.save_for_backward(queries, keys, values, table, output, logarithms)
        ctx.bias, ctx.blocks = bias, setting.tiles.get("backward")
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from hafm_lightning.kernels.cuda import triton_attention_kernels as kernels

        queries, keys, values, table, output, logarithms = ctx.saved_tensors
        blocks, plan = ctx.blocks, ctx.bias.plan(ctx.blocks)
        batch, heads, steps, width = queries.shape
        gradient = gradient.to(queries.dtype)
        gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
        levels = torch.empty_like(logarithms)
        given = [x for each in (output, gradient) for x in (each, *each.stride()[:3])]
        lines = plan.by_query.lines
        kernels.level_kernel[(lines * batch * heads,)](
            *given, levels, lines, heads, steps, HEAD=width, WIDTH=padded(width), QUERIES=blocks.queries
        )
        results = [_steps_first(queries) for _ in range(3)]
        strides = results[0].stride()[:3]
        parts = table.new_zeros(batch * heads * lines, table.shape[0])
        given = [x for each in (queries, keys, values, gradient) for x in (each, *each.stride()[:3])]
        given += [logarithms, levels, _powers_of_two(table)]
        numbers = [table.shape[0], LOG2_E / math.sqrt(width), 1 / math.sqrt(width)]
        _launch(
            kernels.query_gradient_kernel, plan.by_query, blocks, queries,
            [*given, results[0], *strides, parts],
            [*vars(plan.by_query).values(), plan.patterns, *plan.rows_of_patterns],
            numbers,
        )  # fmt: skip
        _launch(
            kernels.key_gradient_kernel, plan.by_key, blocks, queries,
            [*given, results[1], results[2], *strides],
            [*vars(plan.by_key).values(), plan.patterns],
            numbers,
        )  # fmt: skip
        over_tiles = parts.view(batch, heads, lines, -1).double().sum((0, 2)).float()  # [H, R + 1]
        return *results, over_tiles.t(), None, None


def _launch(
    kernel: Any,
    tiles: TileList,
    blocks: Blocks,
    like: Tensor,
    tensors: list[Any],
    lists: list[Tensor],
    numbers: list[Any],
) -> None:
    """Start a program for each line of tiles of each head of each clip."""
    batch, heads, steps, width = like.shape
    if batch * heads == 0:
        return
    table_rows, *scales = numbers
    *columns, order = lists[: len(vars(tiles))]
    kernel[(tiles.lines * batch * heads,)](
        *tensors, order, *columns, *lists[len(vars(tiles)) :],
        tiles.lines, heads, steps, table_rows, *scales,
        HEAD=width, WIDTH=padded(width), QUERIES=blocks.queries, KEYS=blocks.keys, PRECISION=precision_of(like.dtype),
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def _steps_first(like: Tensor) -> Tensor:
    """Room for ``[B, H, S, d]`` that lies in memory as ``[B, S, H, d]``: heads side by side for what follows."""
    batch, heads, steps, width = like.shape
    return like.new_empty(batch, steps, heads, width).transpose(1, 2)


def _powers_of_two(table: Tensor) -> Tensor:
    """The table ``[R + 1, H]`` for scores as powers of two, a row for each head."""
    return (table.detach() * LOG2_E).t().contiguous()


@dataclass
class Settings:
    """The tiles found so far for each device, type, width of a head, and training or not."""

    found: dict[object, Setting | None] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    chip_of: Callable[[torch.device], Chip] = Chip.of

    def of(self, queries: Tensor, training: bool) -> Setting | None:
        """The tiles for such inputs; None where the kernels cannot run. Warns once of what differs from the best."""
        device, dtype, width = queries.device, queries.dtype, queries.shape[-1]
        key = (device, dtype, width, training)
        if key not in self.found:
            self.found[key] = self._first_that_runs(device, dtype, width, training)
        return self.found[key]

    def _first_that_runs(self, device: torch.device, dtype: torch.dtype, width: int, training: bool) -> Setting | None:
        chip = self.chip_of(device)
        reason = unusable(device) or chip.misfit
        if reason is not None:
            self._warn_without(chip, training, reason)
            return None
        largest = Setting.largest(chip, padded(width), dtype.itemsize, training)
        setting, reason = largest, f"{chip.shared_bytes} bytes of shared memory are too few for the smallest tiles"
        while not setting.exhausted:
            failure = _failure(setting, device, dtype, width)
            if failure is None:
                break
            of, reason = failure
            setting = setting.after_failure(of)
        if setting.exhausted:
            self._warn_without(chip, training, reason)
            return None
        if setting != largest:
            sizes = " and ".join(f"{kernel} tiles of {blocks}" for kernel, blocks in setting.tiles.items())
            self._warn(f"Triton attention on {chip.name} falls back to {sizes}: somewhat slower ({reason})")
        return setting

    def _warn_without(self, chip: Chip, training: bool, reason: str) -> None:
        behind = "FlexAttention" if training else "PyTorch's operations on blocks of queries"
        self._warn(f"Triton attention cannot run on {chip.name}; {behind} stands in for it: slower ({reason})")

    def _warn(self, line: str) -> None:
        if line not in self.warned:
            self.warned.add(line)
            warnings.warn(line, stacklevel=2)


def _failure(setting: Setting, device: torch.device, dtype: torch.dtype, width: int) -> tuple[Kernel, str] | None:
    """Run the kernels on zeros, a few tiles long: which one cannot be built, and why."""
    steps = max(max(blocks.queries, blocks.keys) for blocks in setting.tiles.values()) + 16
    with torch.inference_mode(False), torch.enable_grad():
        module = RelativePosition(1, "index").to(device)
        positions = StepPositions(torch.zeros(steps, dtype=torch.int64), torch.arange(steps), 0)
        positions = StepPositions(positions.segment.to(device), positions.ticks.to(device), 0)
        qkv = torch.zeros(3, 1, 1, steps, width, device=device, dtype=dtype, requires_grad=setting.backward is not None)
        bias, reached = TritonBias(module, positions), "forward"
        try:
            # a checkpointed layer's hooks must not see these tensors
            with saved_tensors_hooks(lambda x: x, lambda x: x), torch.autocast(device.type, enabled=False):
                output = _TritonAttention.apply(*qkv, module.table(), bias, setting)  # type: ignore[no-untyped-call]
                reached = "backward"
                if setting.backward is not None:
                    torch.autograd.grad(output, [qkv], torch.zeros_like(output))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # what fails on the way fails here
        except Exception as error:
            reason = build_failure(error)
            if reason is None:
                raise
            return ("forward" if reached == "forward" else "backward"), reason
    return None


settings = Settings()
