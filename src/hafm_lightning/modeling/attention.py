"""Attention with a learned relative bias: exact, differentiable in the bias, never an S x S float of every layer.

Three ways to the same numbers, chosen by :func:`prepare`:

``blockwise`` (CPU)
    Query blocks with recomputation. A learned bias rules out the fused kernels of
    ``scaled_dot_product_attention`` when it needs a gradient, and keeping the probabilities of every layer would cost
    ``layers * H * S^2`` floats. Forward runs the fused CPU kernel on one query block at a time, against the keys that
    the block can see; backward rebuilds the probabilities of that block from the saved log-sum-exp.
``flex`` (CUDA)
    FlexAttention: the bias is computed in the ``score_mod`` from bucketed distances, a block mask skips what cannot be
    seen; compiled, so that no S x S tensor exists.
``dense``
    One additive mask for ``scaled_dot_product_attention``: for other devices, short sequences and as a reference.

Shapes: queries, keys and values ``[B, H, S, d]``. Scores are scaled by ``1 / sqrt(d)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.modeling.layout import TIMELESS
from hafm_lightning.modeling.relative_position import (
    BUCKETS,
    MAX_DISTANCE_STEPS,
    MAX_DISTANCE_TICKS,
    RelativePosition,
    StepPositions,
    t5_buckets,
)

AttentionBackend = Literal["auto", "blockwise", "flex", "dense"]

QUERY_BLOCK_STEPS = 256
"""Queries handled at once on the CPU: a block's scores fit the cache, few keys beyond the causal edge are read."""


@dataclass(frozen=True)
class QueryBlock:
    """Queries ``start:stop`` against keys ``0:keys``; ``rows`` is int32 ``[(stop - start) * keys]``."""

    start: int
    stop: int
    keys: int
    rows: Tensor

    def bias(self, table: Tensor) -> Tensor:
        """Mask and bias of the block, ``[H, Q, N]``, from ``table [R, H]``."""
        return table.t().index_select(1, self.rows).view(-1, self.stop - self.start, self.keys)


@dataclass(frozen=True)
class Geometry:
    """What attention needs to know of a sequence's steps, made once for each length and device and used by all layers.

    Attributes:
        backend: Which of the three ways.
        blocks: Query blocks (``blockwise``).
        rows: Bias row of each pair, int64 ``[S, S]`` (``dense``).
        flex: Captured tensors and block mask (``flex``).
    """

    backend: Literal["blockwise", "flex", "dense"]
    blocks: tuple[QueryBlock, ...] = ()
    rows: Tensor | None = None
    flex: FlexGeometry | None = field(default=None)


@dataclass(frozen=True)
class FlexGeometry:
    """Look-up tables for the ``score_mod``: distance -> bias row, and the block mask."""

    steps: int
    within_rows: Tensor  # [2 S - 1]
    across_rows: Tensor | None  # [2 R + 1], R the largest difference in ticks
    segment: Tensor
    ticks: Tensor
    latest_tick: int
    block_mask: Any


def prepare(module: RelativePosition, positions: StepPositions, backend: AttentionBackend = "auto") -> Geometry:
    """The geometry of a sequence for ``module`` on the device of ``positions``.

    Raises:
        ValueError: ``backend`` is unknown, or ``blockwise`` is asked for off the CPU.
    """
    device = positions.segment.device
    chosen = backend
    if chosen == "auto":
        chosen = {"cpu": "blockwise", "cuda": "flex"}.get(device.type, "dense")  # type: ignore[assignment]
    if chosen == "blockwise":
        if device.type != "cpu":
            raise ValueError(f"attention backend 'blockwise' runs on the CPU, not on {device}; use 'flex' or 'dense'")
        return Geometry("blockwise", blocks=_query_blocks(module, positions))
    if chosen == "flex":
        return Geometry("flex", flex=_flex_geometry(module, positions))
    if chosen == "dense":
        steps = torch.arange(positions.steps, device=device)
        return Geometry("dense", rows=module.rows(positions, steps, steps))
    raise ValueError(f"unknown attention backend {backend!r}; choose auto, blockwise, flex or dense")


def attend(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, geometry: Geometry) -> Tensor:
    """Attention over a whole sequence, ``[B, H, S, d]`` -> the same; ``table`` is ``RelativePosition.table()``."""
    if geometry.backend == "blockwise":
        dtype = values.dtype
        inputs = (queries.float(), keys.float(), values.float(), table, geometry.blocks)
        return _BlockwiseAttention.apply(*inputs).to(dtype)  # type: ignore[no-any-return, no-untyped-call]
    if geometry.backend == "flex":
        assert geometry.flex is not None
        return _flex_attend(queries, keys, values, table, geometry.flex)
    assert geometry.rows is not None
    bias = table.t().index_select(1, geometry.rows.flatten()).view(1, -1, *geometry.rows.shape)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))


def _query_blocks(module: RelativePosition, positions: StepPositions) -> tuple[QueryBlock, ...]:
    blocks = []
    for start in range(0, positions.steps, QUERY_BLOCK_STEPS):
        stop = min(start + QUERY_BLOCK_STEPS, positions.steps)
        keys = stop if module.causal else positions.steps
        if module.prefix_mask == "bidirectional" and start < positions.condition_steps:
            keys = max(keys, positions.condition_steps)
        rows = module.rows(positions, torch.arange(start, stop, device="cpu"), torch.arange(keys, device="cpu"))
        blocks.append(QueryBlock(start, stop, keys, rows.int().flatten()))
    return tuple(blocks)


class _BlockwiseAttention(torch.autograd.Function):
    """Attention in query blocks; gradients for queries, keys, values and the bias table."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, blocks: tuple[QueryBlock, ...]
    ) -> Tensor:
        batch, heads, steps, _ = queries.shape
        output = torch.empty_like(queries)
        log_sum = queries.new_empty(batch, heads, steps)
        for block in blocks:
            here = slice(block.start, block.stop)
            mask = block.bias(table)[None].expand(batch, -1, -1, -1)
            output[:, :, here], log_sum[:, :, here] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, here], keys[:, :, : block.keys], values[:, :, : block.keys], attn_mask=mask
            )
        ctx.save_for_backward(queries, keys, values, table, output, log_sum)
        ctx.blocks = blocks
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        (grad_output,) = gradients
        queries, keys, values, table, output, log_sum = ctx.saved_tensors
        scale = 1 / math.sqrt(queries.shape[-1])
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        grad_table = torch.zeros_like(table.t())
        inner = (grad_output * output).sum(-1)  # [B, H, S], the softmax's rowwise correction
        for block in ctx.blocks:
            here, seen = slice(block.start, block.stop), slice(0, block.keys)
            bias = block.bias(table)
            grad_bias = torch.zeros_like(bias)
            for item in range(queries.shape[0]):
                query, key, value = queries[item, :, here], keys[item, :, seen], values[item, :, seen]
                grad_out = grad_output[item, :, here]
                scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
                probabilities = scores.sub_(log_sum[item, :, here, None]).exp_()  # [H, Q, N]
                grad_values[item, :, seen].baddbmm_(probabilities.transpose(1, 2), grad_out)
                grad_scores = torch.bmm(grad_out, value.transpose(1, 2)).sub_(inner[item, :, here, None])
                grad_scores.mul_(probabilities)
                grad_bias.add_(grad_scores)
                torch.bmm(grad_scores, key, out=grad_queries[item, :, here])
                grad_keys[item, :, seen].baddbmm_(grad_scores.transpose(1, 2), query, alpha=scale)
            grad_table.index_add_(1, block.rows, grad_bias.flatten(1))
        grad_table[:, -1] = 0  # the row of -inf is no parameter
        return grad_queries.mul_(scale), grad_keys, grad_values, grad_table.t(), None


def _flex_geometry(module: RelativePosition, positions: StepPositions) -> FlexGeometry:
    from torch.nn.attention.flex_attention import create_block_mask

    steps, device = positions.steps, positions.segment.device
    distance = torch.arange(-(steps - 1), steps, device=device)
    latest = int(positions.ticks.max())
    across = None
    if module.across_segments:
        difference = torch.arange(-latest, latest + 1, device=device)
        across = BUCKETS + t5_buckets(difference, bidirectional=True, max_distance=MAX_DISTANCE_TICKS)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return module.allowed(positions, query, key)

    return FlexGeometry(
        steps=steps,
        within_rows=t5_buckets(distance, bidirectional=not module.causal, max_distance=MAX_DISTANCE_STEPS),
        across_rows=across,
        segment=positions.segment,
        ticks=positions.ticks,
        latest_tick=latest,
        block_mask=create_block_mask(visible, None, None, steps, steps, device=str(device)),
    )


@lru_cache(maxsize=1)
def _flex_function(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention  # type: ignore[return-value]


def _flex_attend(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, geometry: FlexGeometry) -> Tensor:
    rows = table.t()
    within = rows.index_select(1, geometry.within_rows).contiguous()  # [H, 2 S - 1]
    centre, segment, ticks = geometry.steps - 1, geometry.segment, geometry.ticks
    if geometry.across_rows is None:

        def score_mod(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + within[head, query - key + centre]

    else:
        across, origin = rows.index_select(1, geometry.across_rows).contiguous(), geometry.latest_tick

        def score_mod(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query_ticks, key_ticks = ticks[query], ticks[key]
            apart = (segment[query] != segment[key]) & (query_ticks != TIMELESS) & (key_ticks != TIMELESS)
            by_time = across[head, torch.where(apart, query_ticks - key_ticks, 0) + origin]
            return score + torch.where(apart, by_time, within[head, query - key + centre])

    flex = _flex_function(queries.device.type == "cuda")
    return flex(queries, keys, values, score_mod=score_mod, block_mask=geometry.block_mask)
