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

from hafm_lightning.modeling.bias_spans import QueryBlock, query_blocks
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

QUERY_BLOCK_STEPS = 64
"""Queries handled at once on the CPU: a block's scores stay in the cache, few keys beyond the causal edge are read."""
SCORES_AT_ONCE = 2**20
"""Scores handled at once in the backward pass: several clips where sequences are short."""


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
        return Geometry("blockwise", blocks=query_blocks(module, positions, QUERY_BLOCK_STEPS))
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
        with torch.autocast("cpu", enabled=False):  # or the fused kernel would answer in half precision
            return _BlockwiseAttention.apply(*inputs).to(dtype)  # type: ignore[no-any-return, no-untyped-call]
    if geometry.backend == "flex":
        assert geometry.flex is not None
        return _flex_attend(queries, keys, values, table, geometry.flex)
    assert geometry.rows is not None
    bias = table.t().index_select(1, geometry.rows.flatten()).view(1, -1, *geometry.rows.shape)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))


class _BlockwiseAttention(torch.autograd.Function):
    """Attention in query blocks; gradients for queries, keys, values and the bias table."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, blocks: tuple[QueryBlock, ...]
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, table)
        ctx.blocks = blocks
        batch, heads, steps, width = queries.shape
        output = queries.new_empty(batch, steps, heads, width).transpose(1, 2)  # heads side by side for what follows
        rows = table.t().contiguous()
        for block in blocks:
            here = queries.index_select(2, block.order)
            seen, mask = slice(0, block.keys), block.bias(rows)[None]
            mixed = F.scaled_dot_product_attention(here, keys[:, :, seen], values[:, :, seen], attn_mask=mask)
            output.index_copy_(2, block.order, mixed)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        queries, keys, values, table = ctx.saved_tensors
        batch, heads, _, width = queries.shape
        scale = 1 / math.sqrt(width)
        grad_queries = torch.empty_like(queries)
        grad_table = torch.zeros_like(table.t(), memory_format=torch.contiguous_format)
        rows = table.t().contiguous()
        key, value = (x.contiguous().view(batch * heads, -1, width) for x in (keys, values))
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for block in ctx.blocks:
            bias = block.bias(rows)
            grad_bias = torch.zeros_like(bias)
            query = (queries.index_select(2, block.order) * scale).view(batch * heads, -1, width)
            grad_out = gradients[0].index_select(2, block.order).view(batch * heads, -1, width)
            grad_query = torch.empty_like(query)
            items = max(1, SCORES_AT_ONCE // bias.numel())
            for first in range(0, batch, items):
                some = slice(first * heads, min(first + items, batch) * heads)  # clips times heads
                k, v, q, g = key[some, : block.keys], value[some, : block.keys], query[some], grad_out[some]
                scores = bias.repeat(len(q) // heads, 1, 1).baddbmm_(q, k.transpose(1, 2))
                weights = torch.softmax(scores, -1)
                grad_value[some, : block.keys].baddbmm_(weights.transpose(1, 2), g)
                torch.bmm(g, v.transpose(1, 2), out=scores)
                grad_scores = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
                grad_bias.add_(grad_scores.unflatten(0, (-1, heads)).sum(0))  # type: ignore[no-untyped-call]
                torch.bmm(grad_scores, k, out=grad_query[some])
                grad_key[some, : block.keys].baddbmm_(grad_scores.transpose(1, 2), q)
            grad_queries.index_copy_(2, block.order, grad_query.view(batch, heads, -1, width))
            block.collect(grad_bias, grad_table)
        grad_table[:, -1] = 0  # the row of -inf is no parameter
        return grad_queries.mul_(scale), grad_key.view(keys.shape), grad_value.view(keys.shape), grad_table.t(), None


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
