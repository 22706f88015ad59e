"""Attention with a learned relative bias on CUDA, by Triton kernels over classed tiles; for training and inference.

Nearly all tiles of scores have one bias (:mod:`hafm_lightning.kernels.tiles`), so these kernels cost little more than
attention without bias. Lengths are arguments: nothing is compiled for a new one. Choices:

* **What stands behind them**: smaller tiles, then FlexAttention (training) or PyTorch's operations in blocks of queries
  (inference, where compiling FlexAttention for each of a few lengths would take longer than the take). One line warns
  of each change.
* **A setting is tried before it is used**, forward and backward, and compared with PyTorch (:mod:`.triton_trial`).
* **Gradients are the same in every run** (:mod:`.triton_passes`).
* **One operator for a compiler**: a compiled layer holds attention as one call, so that what is around it is joined in
  one graph; what the call needs, it finds by the number of the bias.

Under ``TRITON_INTERPRET=1`` the same code runs on a CPU, for tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cuda.flex_attention import FlexBias
from hafm_lightning.kernels.cuda.triton_blocks import Blocks, Chip, Setting, padded, unusable
from hafm_lightning.kernels.cuda.triton_passes import (
    BackwardPass,
    SpreadTable,
    dense,
    forward_pass,
    outputs_like,
    steps_first,
)
from hafm_lightning.kernels.cuda.triton_trial import first_failure
from hafm_lightning.kernels.tiles import TilePlan
from hafm_lightning.modeling.attention import SequenceBias
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class TritonBias:
    """Mask and bias of the ``positions`` of a sequence after ``module``; a plan of tiles for each size in use."""

    module: RelativePosition
    positions: StepPositions
    plans: dict[tuple[int, int], TilePlan] = field(default_factory=dict)
    spreads: dict[object, tuple[Tensor, SpreadTable]] = field(default_factory=dict)  # of the last table alone

    @classmethod
    def of(cls, module: RelativePosition, positions: StepPositions) -> TritonBias:
        """Mask and bias of a sequence on the device of ``positions``."""
        return cls(module, positions)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, here or in another process, is a bias of its own, with a number of its own."""
        return TritonBias, (self.module, self.positions)

    def plan(self, blocks: Blocks) -> TilePlan:
        """The plan for tiles of one size."""
        size = (blocks.queries, blocks.keys)
        if size not in self.plans:
            self.plans[size] = TilePlan.of(self.module, self.positions, *size)
        return self.plans[size]

    def spread(self, table: Tensor, dtype: torch.dtype) -> SpreadTable:
        """The bias table as the kernels read it; all layers of a step, forward and backward, share one."""
        if table.is_inference():  # has no version by which to know it again
            return SpreadTable.of(table, dtype)
        key = (table.data_ptr(), table._version, dtype)
        if key not in self.spreads:
            self.spreads.clear()
            # the table is kept with it: no other can take its place in memory
            self.spreads[key] = (table.detach(), SpreadTable.of(table.detach(), dtype))
        return self.spreads[key][1]

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

    @cached_property
    def traceable(self) -> TracedBias:
        """The same as one operator, for compiled layers; :attr:`Settings.of` must have found tiles."""
        number = next(_numbers)
        _alive[number] = self
        with torch.inference_mode(False):  # is cached and must serve training too, wherever it was first made
            return TracedBias(torch.tensor(number))

    # a compiled layer is given what is traceable, where there is tiles for it
    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend`, with sums in float32.

        Raises:
            ValueError: Inputs of another number of steps.
        """
        if queries.shape[-2] != self.positions.steps:
            raise ValueError(f"these biases are for {self.positions.steps} steps, not for {queries.shape[-2]}")
        training = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, values, table))
        dtype = _dtype_of(queries, keys, values)
        if settings.of(queries.device, dtype, queries.shape[-1], training) is None:
            behind = self.flex if training and queries.device.type == "cuda" else self.plain
            return behind.attend(queries, keys, values, table)
        output: Tensor = self.traceable.attend(queries, keys, values, table)
        return output


_numbers = count()
_alive: WeakValueDictionary[int, TritonBias] = WeakValueDictionary()
"""The biases by number: what an operator is given are tensors, and its bias lives as long as the model that made it."""


@dataclass(frozen=True)
class TracedBias:
    """A bias by its number, which a compiled layer takes as an input: another bias compiles nothing anew."""

    number: Tensor

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend`."""
        dtype, training = _dtype_of(queries, keys, values), torch.is_grad_enabled()
        inputs = (x.to(dtype) for x in (queries, keys, values))
        output: Tensor = _attend(*inputs, table.float(), self.number, training)[0]
        return output.to(values.dtype)


def _dtype_of(*inputs: Tensor) -> torch.dtype:
    """The type that the kernels compute in."""
    dtypes = {x.dtype for x in inputs}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    # Triton's interpreter has no products of bfloat16: it multiplies the bits as whole numbers
    products = DTYPES if inputs[0].device.type == "cuda" else (torch.float16, torch.float32)
    return dtype if dtype in products else torch.float32


@torch.library.custom_op("hafm_lightning::attend", mutates_args=())
def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, number: Tensor, training: bool
) -> tuple[Tensor, Tensor]:
    bias, setting = _found(number, queries, training)
    blocks = setting.tiles["forward"]
    spread = bias.spread(table, queries.dtype)
    return forward_pass(dense(queries), dense(keys), dense(values), spread, bias.plan(blocks), blocks)


@_attend.register_fake
def _attend_shapes(
    queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, number: Tensor, training: bool
) -> tuple[Tensor, Tensor]:
    return outputs_like(queries)


@torch.library.custom_op("hafm_lightning::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    output: Tensor,
    logarithms: Tensor,
    number: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias, setting = _found(number, queries, training=True)
    by_query, by_key = setting.tiles["query_gradient"], setting.tiles["key_gradient"]
    spread = bias.spread(table, queries.dtype)
    work = BackwardPass.of(gradient, dense(queries), dense(keys), dense(values), spread, output, logarithms)
    of_queries, of_table = work.by_query(bias.plan(by_query), by_query)
    return of_queries, *work.by_key(bias.plan(by_key), by_key), of_table


@_attend_backward.register_fake
def _attend_backward_shapes(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    output: Tensor,
    logarithms: Tensor,
    number: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_table = table.new_empty(table.shape[1], table.shape[0]).t()
    return steps_first(queries), steps_first(queries), steps_first(queries), of_table


def _found(number: Tensor, queries: Tensor, training: bool) -> tuple[TritonBias, Setting]:
    bias = _alive.get(int(number))
    setting = settings.of(queries.device, queries.dtype, queries.shape[-1], training)
    if bias is None or setting is None:
        raise RuntimeError(
            "the bias of this attention is gone: keep the model that made it until its gradients are there"
        )
    return bias, setting


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, keys, values, table, number, _ = inputs
    ctx.save_for_backward(queries, keys, values, table, *output, number)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_attend_backward(gradient, *ctx.saved_tensors), None, None


_attend.register_autograd(_gradients, setup_context=_keep)


class TritonRelativePosition(Twin, RelativePosition):
    """A relative position whose sequences attend by Triton kernels, on CUDA (or in Triton's interpreter)."""

    def sequence_bias(self, positions: StepPositions) -> SequenceBias:
        """As :meth:`RelativePosition.sequence_bias`."""
        return TritonBias.of(self, positions)


@dataclass
class Settings:
    """The tiles found so far for each device, type, width of a head, and training or not."""

    found: dict[object, Setting | None] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    chip_of: Callable[[torch.device], Chip] = Chip.of

    def of(self, device: torch.device, dtype: torch.dtype, width: int, training: bool) -> Setting | None:
        """The tiles for such inputs; None where the kernels cannot run. Warns once of what differs from the best."""
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
            failure = first_failure(setting, device, dtype, width)
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


settings = Settings()
