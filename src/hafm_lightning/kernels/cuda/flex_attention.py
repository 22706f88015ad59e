"""FlexAttention with the learned relative bias, and what stands in where its kernels cannot be built.

The bias is gathered in the ``score_mod`` from a row ``[H, N]`` of bucketed distances, a block mask skips what
cannot be seen; compiled, so that no S x S tensor exists.

Choices:

* **Every setting is tried before it is used.** Forward and backward run once on zeros of the real shape,
  since the backward kernel is compiled at the first backward pass. If a kernel cannot be built, the next
  smaller tiles are tried (:mod:`~hafm_lightning.kernels.cuda.flex_tiles`), and at last PyTorch's operations,
  as on other devices. A warning of one line tells each change.
* **One compiled function for each shape.** Dynamo keeps at most 8 compilations of a function and then runs it
  uncompiled, which for FlexAttention writes out the scores of all pairs. A function for each shape stays far
  below that limit, and refuses to run uncompiled.
* Dynamo does not trace what is here as part of a compiled layer: it would count towards that layer's limit.
* On a CPU there is no kernel for the backward pass; the forward pass serves as a reference.
"""

from __future__ import annotations

import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cuda.flex_tiles import (
    BACKWARD,
    FORWARD,
    Setting,
    UncompiledError,
    build_failure,
    device_name,
    shared_memory_bytes,
)
from hafm_lightning.modeling.attention import PairBias, SequenceBias
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
FlexKernel = Callable[..., Tensor]
"""``(queries, keys, values, score_mod, block_mask, kernel_options) -> output``."""
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Queries, keys, values, and the bias of each distance ``[H, 2 S - 1 (+ 2 R + 1)]``."""


@dataclass(frozen=True)
class FlexBias:
    """Mask and bias of a sequence: look-up table for the ``score_mod``, and the block mask.

    One table serves steps and times, so that the backward pass adds each pair's gradient at one place, and
    pairs at different distances at different ones: thousands of pairs that meet at a single number would wait
    for each other.
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
            # plain numbers: what captures a module is compiled anew for each module
            return visible(query, key, causal, both_ways)

        return cls(
            module=module,
            positions=positions,
            rows=rows,
            segment=positions.segment.int(),
            ticks=positions.ticks.int(),
            latest_tick=latest,
            block_mask=create_block_mask(mask_mod, None, None, steps, steps, device=str(device)),
        )

    @property
    def steps(self) -> int:
        """Number of steps, ``S``."""
        return self.positions.steps

    @property
    def signature(self) -> tuple[object, ...]:
        """What a compiled function depends on beside the shapes of its inputs."""
        module = self.module
        both_ways = module.steps_seen_both_ways(self.positions)
        return (self.steps, self.latest_tick, module.across_segments, module.causal, both_ways)

    @cached_property
    def plain(self) -> PairBias:
        """The same for PyTorch's operations."""
        with torch.inference_mode(False):  # is cached and must serve training too, wherever it was first made
            steps = torch.arange(self.steps, device=self.segment.device)
            return PairBias.of(self.module.rows(self.positions, steps, steps), self.module.masked_row)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """Attention over the sequence, ``[B, H, S, d]`` -> the same; ``table`` is ``RelativePosition.table()``."""
        return flex_attention(queries, keys, values, table, self)  # type: ignore[no-any-return, unused-ignore]

    def score_mod(self, bias: Tensor) -> ScoreMod:
        """The function that adds ``bias``, ``[H, 2 S - 1 (+ 2 R + 1)]``, to a score."""
        centre, segment, ticks = self.steps - 1, self.segment, self.ticks
        same_time = 2 * self.steps - 1 + self.latest_tick

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


@torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
def flex_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    sequence: FlexBias,
) -> Tensor:
    """Attention over a whole sequence, ``[B, H, S, d]`` -> the same, by the largest tiles that can be built.

    Args:
        queries: ``[B, H, S, d]``, as ``keys`` and ``values``.
        keys: What the queries are compared with.
        values: What is mixed.
        table: ``RelativePosition.table()``.
        sequence: Mask and bias of the same sequence, on the same device.

    Warns once where that is not PyTorch's own choice. Raises errors other than those of building a kernel.
    """
    bias = table.t().index_select(1, sequence.rows).contiguous()  # [H, 2 S - 1 (+ 2 R + 1)]
    inputs = (queries, keys, values, bias)
    kernel = _kernels.of(inputs, sequence)
    if kernel is None:
        return sequence.plain.attend(queries, keys, values, table)
    return kernel.run(inputs, sequence)


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
    """The kernels found so far, by everything that they were compiled for.

    Where a new length begins to look is remembered by kind: device, dtype, head width, with or without times,
    and whether the length fills its last tile.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[object, _Kernel | None] = OrderedDict()
        self._forward: dict[object, int] = {}
        self._backward: dict[object, int] = {}
        self._told: set[tuple[str, str]] = set()

    def of(self, inputs: Inputs, sequence: FlexBias) -> _Kernel | None:
        """The kernel for ``inputs``, tried on zeros; None if none can be built."""
        device, inference = inputs[0].device, torch.is_inference_mode_enabled()
        mode = (torch.is_grad_enabled(), inference, torch.is_autocast_enabled(device.type))
        shapes = tuple((x.shape, x.stride(), x.dtype, x.requires_grad) for x in inputs)
        key = (device, mode, shapes, sequence.signature)
        if key not in self._found:
            self._found[key] = self._first_that_builds(inputs, sequence)
            while len(self._found) > KEPT_KERNELS:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]

    def _first_that_builds(self, inputs: Inputs, sequence: FlexBias) -> _Kernel | None:
        queries, steps = inputs[0], sequence.steps
        device, width, itemsize = queries.device, queries.shape[-1], queries.dtype.itemsize
        length = "short" if steps < 128 else "ragged" if steps % 128 else "whole"
        kind = (device, queries.dtype, width, sequence.module.across_segments, length)
        training = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        backward = self._backward.get(kind, 0) if training else None
        setting = Setting(self._forward.get(kind, 0), backward)
        kernel, limit, reason = None, shared_memory_bytes(device), "as for an earlier length"
        while not setting.exhausted:
            kernel = _Kernel(compile_flex(f"flex_attention_of_{steps}_steps", device), setting)
            failure = _failure(kernel, inputs, sequence, training)
            if failure is None:
                break
            reason = failure.reason
            if failure.where == "everywhere":
                setting = Setting(len(FORWARD), setting.backward)
            elif failure.where == "backward":
                setting = setting.next_backward(width, itemsize, limit)
            else:
                setting = setting.next_forward(width, itemsize, limit)
        self._forward[kind] = setting.forward
        if setting.backward is not None:
            self._backward[kind] = setting.backward
        self._tell(setting, device, reason)
        return None if setting.exhausted else kernel

    def _tell(self, setting: Setting, device: torch.device, reason: str) -> None:
        """One line for what differs from PyTorch's own choice, unless it was told before."""
        name = device_name(device)
        if setting.exhausted:
            changes = ["plain"]
            line = (
                f"FlexAttention cannot be built on {name}; attention falls back to PyTorch's operations on blocks "
                "of queries: a training step takes several times as long"
            )
        else:
            chosen = {"forward": FORWARD[setting.forward], "backward": BACKWARD[setting.backward or 0]}
            changes = [f"{which} tiles of {tiles}" for which, tiles in chosen.items() if tiles is not None]
            line = (
                f"FlexAttention's default kernel cannot be built on {name}; attention falls back to "
                f"{' and '.join(changes)}: somewhat slower"
            )
        if {(name, change) for change in changes} <= self._told:
            return
        self._told |= {(name, change) for change in changes}
        warnings.warn(f"{line} ({reason})", stacklevel=2)


@dataclass(frozen=True)
class _Failure:
    """Which kernel cannot be built, and why in one line."""

    where: Literal["forward", "backward", "everywhere"]
    reason: str


def _failure(kernel: _Kernel, inputs: Inputs, sequence: FlexBias, training: bool) -> _Failure | None:
    """Run both passes on zeros laid out as ``inputs``; raises errors but those of building a kernel."""
    queries, keys, values, bias = (_zeros_like(x) for x in inputs)
    zeros: Inputs = (queries, keys, values, bias)
    in_backward = False
    try:
        # a checkpointed layer's hooks must not see these tensors; DDP's optimizer of graphs, which in older
        # versions refuses FlexAttention's, has no parameters here to split them at
        with saved_tensors_hooks(_same, _same), torch._dynamo.config.patch(optimize_ddp=False):
            output = kernel.run(zeros, sequence)
            in_backward = True
            if training:
                leaves = [x for x in zeros if x.requires_grad]
                torch.autograd.grad(output, leaves, torch.zeros_like(output))
    except Exception as error:
        reason = build_failure(error)
        if reason is None:
            raise
        if isinstance(error, UncompiledError):
            return _Failure("everywhere", reason)
        return _Failure("backward" if in_backward else "forward", reason)
    return None


def _zeros_like(x: Tensor) -> Tensor:
    """Zeros in the same memory layout, which ``torch.zeros_like`` keeps only for dense tensors."""
    zeros = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).zero_()
    return zeros.requires_grad_(x.requires_grad)


def _same(tensor: Tensor) -> Tensor:
    return tensor


_kernels = _Kernels()
