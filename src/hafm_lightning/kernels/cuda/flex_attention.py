"""FlexAttention with the learned relative bias, and what stands in where its kernels cannot be built.

The bias is gathered in the ``score_mod`` from a row ``[H, N]`` of bucketed distances, a block mask skips what cannot be
seen; compiled, so that no S x S tensor exists. Choices:

* **Every setting is tried before it is used**, forward and backward, on zeros of the real shape. If a kernel cannot be
  built, the next smaller tiles are tried (:mod:`~hafm_lightning.kernels.cuda.flex_tiles`), and at last PyTorch's
  operations. One line warns of each change.
* **One compiled function for each shape.** Dynamo keeps at most 8 compilations of a function and then runs it
  uncompiled, which for FlexAttention writes out the scores of all pairs.

On a CPU there is no kernel for the backward pass; the forward pass serves as a reference.
"""

from __future__ import annotations

import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cuda.flex_tiles import Pass, Setting, UncompiledError, build_failure
from hafm_lightning.modeling.attention import SequenceBias
from hafm_lightning.modeling.layout import TIMELESS
from hafm_lightning.modeling.relative_position import (
    BUCKETS,
    MAX_DISTANCE_STEPS,
    MAX_DISTANCE_TICKS,
    RelativePosition,
    StepPositions,
    t5_buckets,
    visible,
)

KEPT_KERNELS = 64
"""Compiled functions kept: lengths times batch sizes times training or not."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
FlexKernel = Callable[..., Tensor]  # (queries, keys, values, score_mod, block_mask, kernel_options) -> output
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # queries, keys, values, bias of each distance [H, 2 S - 1 (+ 2 R + 1)]


@dataclass(frozen=True)
class FlexBias:
    """Mask and bias of a sequence: look-up table for the ``score_mod``, and the block mask.

    Each distance has a number of its own, so that fewer pairs wait for each other to add their gradients to one.
    """

    module: RelativePosition
    positions: StepPositions
    rows: Tensor  # bias row of each distance, [2 S - 1], then of each difference in ticks, [2 R + 1]
    segment: Tensor  # int32, as ticks: half of what the kernel loads for each pair
    ticks: Tensor
    latest_tick: int
    block_mask: Any

    @classmethod
    def of(cls, module: RelativePosition, positions: StepPositions) -> FlexBias:
        """Mask and bias of a sequence on the device of ``positions``."""
        from torch.nn.attention.flex_attention import create_block_mask

        steps, device = positions.steps, positions.segment.device
        distance = torch.arange(-(steps - 1), steps, device=device)
        rows = t5_buckets(distance, bidirectional=not module.causal, max_distance=MAX_DISTANCE_STEPS)
        latest = int(positions.ticks.max())
        if module.across_segments:
            difference = torch.arange(-latest, latest + 1, device=device)
            across = t5_buckets(difference, bidirectional=True, max_distance=MAX_DISTANCE_TICKS)
            rows = torch.cat((rows, BUCKETS + across))
        causal, both_ways = module.causal, module.steps_seen_both_ways(positions)

        def mask_mod(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # plain numbers: what captures a module is compiled again for each module
            return visible(query, key, causal, both_ways)

        mask = create_block_mask(mask_mod, None, None, steps, steps, device=str(device))
        return cls(module, positions, rows, positions.segment.int(), positions.ticks.int(), latest, mask)

    @cached_property
    def plain(self) -> SequenceBias:
        """The same for PyTorch's operations."""
        with torch.inference_mode(False):  # is cached and must serve training too, wherever it was first made
            return RelativePosition.sequence_bias(self.module, self.positions)

    # Dynamo would count what is compiled here towards the limit of a compiled layer
    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend`, by the largest tiles that can be built; warns where a default fails."""
        bias = table.t().index_select(1, self.rows).contiguous()  # [H, 2 S - 1 (+ 2 R + 1)]
        inputs = (queries, keys, values, bias)
        kernel = _kernels.of(inputs, self)
        if kernel is None:
            return self.plain.attend(queries, keys, values, table)
        return kernel.run(inputs, self)

    def score_mod(self, bias: Tensor) -> ScoreMod:
        """The function that adds ``bias``, ``[H, 2 S - 1 (+ 2 R + 1)]``, to a score."""
        centre, segment, ticks = self.positions.steps - 1, self.segment, self.ticks
        same_time = 2 * centre + 1 + self.latest_tick

        def by_time(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query_ticks, key_ticks = ticks[query], ticks[key]
            timed = (query_ticks != TIMELESS) & (key_ticks != TIMELESS)
            across = (segment[query] != segment[key]) & timed
            by_step, by_tick = query - key + centre, query_ticks - key_ticks + same_time
            return score + bias[head, torch.where(across, by_tick, by_step)]

        def by_index(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + bias[head, query - key + centre]

        return by_time if self.module.across_segments else by_index


class FlexRelativePosition(Twin, RelativePosition):
    """A relative position whose sequences attend by FlexAttention."""

    def sequence_bias(self, positions: StepPositions) -> SequenceBias:
        """As :meth:`RelativePosition.sequence_bias`."""
        return FlexBias.of(self, positions)


def compile_flex(name: str, device: torch.device) -> FlexKernel:
    """FlexAttention, compiled as ``name`` at its first call; no compilation is shared between functions."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    def fused(queries: Tensor, keys: Tensor, values: Tensor, score_mod: ScoreMod, block_mask: Any, options: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():  # true in what is compiled, wherever it then runs
            raise UncompiledError("FlexAttention would run uncompiled: torch.compile is switched off")
        return flex(queries, keys, values, score_mod, block_mask, kernel_options=options)

    # Dynamo keeps what it compiled, and counts it, by the code object
    code = fused.__code__.replace(co_name=name)
    fresh = types.FunctionType(code, fused.__globals__, name, None, fused.__closure__)
    backend = "eager" if device.type == "cpu" else "inductor"
    return torch.compile(fresh, dynamic=False, fullgraph=True, backend=backend)


@dataclass(frozen=True)
class _Kernel:
    """A compiled function and its setting."""

    function: FlexKernel
    setting: Setting

    def run(self, inputs: Inputs, sequence: FlexBias) -> Tensor:
        """The output for ``inputs``."""
        *qkv, bias = inputs
        return self.function(*qkv, sequence.score_mod(bias), sequence.block_mask, self.setting.options())


class _Kernels:
    """The kernels found so far; a new length begins with the setting that the last one of its kind ended with."""

    def __init__(self) -> None:
        self._found: OrderedDict[object, _Kernel | None] = OrderedDict()
        self._settings: dict[object, Setting] = {}
        self._warned: set[tuple[str, str]] = set()

    def of(self, inputs: Inputs, sequence: FlexBias) -> _Kernel | None:
        """The kernel for ``inputs``, tried on zeros; None if none can be built."""
        device, module = inputs[0].device, sequence.module
        mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device.type))
        shapes = tuple((x.shape, x.stride(), x.dtype, x.requires_grad) for x in inputs)
        geometry = (module.across_segments, module.causal, module.steps_seen_both_ways(sequence.positions))
        key = (device, mode, shapes, sequence.latest_tick, geometry)
        if key not in self._found:
            self._found[key] = self._first_that_builds(inputs, sequence)
            while len(self._found) > KEPT_KERNELS:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    def _first_that_builds(self, inputs: Inputs, sequence: FlexBias) -> _Kernel | None:
        queries, steps = inputs[0], sequence.positions.steps
        length = "short" if steps < 128 else "ragged" if steps % 128 else "whole"
        kind = (queries.device, queries.dtype, queries.shape[-1], sequence.module.across_segments, length)
        training = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        start = self._settings.get(kind, Setting())
        setting = start if training else replace(start, backward=None)
        kernel, reason = None, "as for an earlier length"
        while not setting.exhausted:
            kernel = _Kernel(compile_flex(f"flex_attention_of_{steps}_steps", queries.device), setting)
            failure = _failure(kernel, inputs, sequence, training)
            if failure is None:
                break
            of, reason = failure
            setting = setting.after_failure(of)
        self._settings[kind] = setting if training else replace(setting, backward=start.backward)
        self._warn(setting, queries.device, reason)
        return None if setting.exhausted else kernel

    def _warn(self, setting: Setting, device: torch.device, reason: str) -> None:
        """One line for what differs from PyTorch's own choice, once."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        if setting.exhausted:
            changes = ["plain"]
            line = (
                f"FlexAttention cannot be built on {name}; attention falls back to PyTorch's operations on blocks "
                "of queries: a training step takes several times as long"
            )
        else:
            changes = [f"{kernel} tiles of {tiles}" for kernel, tiles in setting.tiles.items()]
            line = (
                f"FlexAttention's default kernel cannot be built on {name}; attention falls back to "
                f"{' and '.join(changes)}: somewhat slower"
            )
        new = {(name, change) for change in changes} - self._warned
        if new:
            self._warned |= new
            warnings.warn(f"{line} ({reason})", stacklevel=2)


def _failure(kernel: _Kernel, inputs: Inputs, sequence: FlexBias, training: bool) -> tuple[Pass | None, str] | None:
    """Run both passes on zeros laid out as ``inputs``: which kernel cannot be built (None: either), and why."""
    queries, keys, values, bias = (
        # torch.zeros_like keeps the memory layout of dense tensors alone
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).zero_().requires_grad_(x.requires_grad)
        for x in inputs
    )
    zeros: Inputs = (queries, keys, values, bias)
    reached: Pass = "forward"
    try:
        # a checkpointed layer's hooks must not see these tensors; DDP's optimizer of graphs, which in older
        # versions refuses FlexAttention's, has no parameters here to split them at
        with saved_tensors_hooks(lambda x: x, lambda x: x), torch._dynamo.config.patch(optimize_ddp=False):
            output = kernel.run(zeros, sequence)
            reached = "backward"
            if training:
                leaves = [x for x in zeros if x.requires_grad]
                torch.autograd.grad(output, leaves, torch.zeros_like(output))
    except Exception as error:
        reason = build_failure(error)
        if reason is None:
            raise
        return None if isinstance(error, UncompiledError) else reached, reason
    return None


_kernels = _Kernels()
