"""Attention with a learned relative bias: exact, differentiable in the bias, never an S x S float of every layer.

Four ways to the same numbers, chosen by :func:`prepare`:

``tiled`` (CPU)
    Compiled functions that keep a tile of 64 by 64 scores in the cache, in half the time of ``blockwise``; see
    :mod:`~hafm_lightning.modeling.tiled_attention`.
``blockwise`` (CPU where nothing can be compiled)
    Query blocks with recomputation, in PyTorch's operations. A learned bias rules out the fused kernels of
    ``scaled_dot_product_attention`` when it needs a gradient, and keeping the probabilities of every layer would cost
    ``layers * H * S^2`` floats. Forward takes one query block at a time, against the keys that the block can see, and
    keeps nothing but its inputs; backward rebuilds the probabilities of that block.
``flex`` (CUDA)
    FlexAttention, or ``dense`` with a warning where its kernels cannot be built; see
    :mod:`~hafm_lightning.modeling.flex_attention`.
``dense``
    One additive mask for ``scaled_dot_product_attention``: for other devices, short sequences and as a reference.

Shapes: queries, keys and values ``[B, H, S, d]``. Scores are scaled by ``1 / sqrt(d)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hafm_lightning.modeling import compiled
from hafm_lightning.modeling.bias_spans import QueryBlock, query_blocks
from hafm_lightning.modeling.flex_attention import FlexGeometry, dense_attention, flex_attention
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions
from hafm_lightning.modeling.tiled_attention import TiledBias, tiled_attention

AttentionBackend = Literal["auto", "tiled", "blockwise", "flex", "dense"]

QUERY_BLOCK_STEPS = 64
"""Queries handled at once on the CPU: a block's scores stay in the cache, few keys beyond the causal edge are read."""
SCORES_AT_ONCE = 2**17
"""Scores handled at once on the CPU by each thread: what fits its cache."""


@dataclass(frozen=True)
class Geometry:
    """What attention needs to know of a sequence's steps, made once for each length and device and used by all layers.

    Attributes:
        backend: Which of the four ways.
        tiles: Mask and bias by tiles (``tiled``).
        blocks: Query blocks (``blockwise``).
        rows: Bias row of each pair, int64 ``[S, S]`` (``dense``).
        flex: Captured tensors and block mask (``flex``).
    """

    backend: Literal["tiled", "blockwise", "flex", "dense"]
    tiles: TiledBias | None = None
    blocks: tuple[QueryBlock, ...] = ()
    rows: Tensor | None = None
    flex: FlexGeometry | None = None


def prepare(module: RelativePosition, positions: StepPositions, backend: AttentionBackend = "auto") -> Geometry:
    """The geometry of a sequence for ``module`` on the device of ``positions``.

    Raises:
        ValueError: ``backend`` is unknown, or one of the CPU's is asked for elsewhere, or ``tiled`` where nothing can
            be compiled.
    """
    device = positions.segment.device
    chosen = backend
    if chosen == "auto":
        on_cpu = "tiled" if device.type == "cpu" and compiled.available() else "blockwise"
        chosen = {"cpu": on_cpu, "cuda": "flex"}.get(device.type, "dense")  # type: ignore[assignment]
    if chosen in ("tiled", "blockwise") and device.type != "cpu":
        raise ValueError(f"attention backend {chosen!r} runs on the CPU, not on {device}; use 'flex' or 'dense'")
    if chosen == "tiled":
        if not compiled.available():
            raise ValueError("attention backend 'tiled' needs llvmlite, and a processor that it knows; use 'blockwise'")
        return Geometry("tiled", tiles=TiledBias.of(module, positions))
    if chosen == "blockwise":
        return Geometry("blockwise", blocks=query_blocks(module, positions, QUERY_BLOCK_STEPS))
    if chosen == "flex":
        return Geometry("flex", flex=FlexGeometry.of(module, positions))
    if chosen == "dense":
        steps = torch.arange(positions.steps, device=device)
        return Geometry("dense", rows=module.rows(positions, steps, steps))
    raise ValueError(f"unknown attention backend {backend!r}; choose auto, tiled, blockwise, flex or dense")


def attend(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, geometry: Geometry) -> Tensor:
    """Attention over a whole sequence, ``[B, H, S, d]`` -> the same; ``table`` is ``RelativePosition.table()``."""
    if geometry.backend in ("tiled", "blockwise"):
        dtype, inputs = values.dtype, (queries.float(), keys.float(), values.float(), table)
        with torch.autocast("cpu", enabled=False):  # or the fused kernel would answer in half precision
            if geometry.tiles is not None:
                return tiled_attention(*inputs, geometry.tiles).to(dtype)
            return _BlockwiseAttention.apply(*inputs, geometry.blocks).to(dtype)  # type: ignore[no-any-return, no-untyped-call]
    if geometry.backend == "flex":
        assert geometry.flex is not None
        return flex_attention(queries, keys, values, table, geometry.flex)  # type: ignore[no-any-return, unused-ignore]
    assert geometry.rows is not None
    return dense_attention(queries, keys, values, table, geometry.rows)


class _BlockwiseAttention(torch.autograd.Function):
    """Attention in query blocks; gradients for queries, keys, values and the bias table.

    A few heads are taken through all blocks before the next ones, so that their keys, values and gradients stay in the
    cache. Queries are counted backwards throughout, as the blocks' biases are.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, blocks: tuple[QueryBlock, ...]
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, table)
        ctx.blocks = blocks
        batch, heads, steps, width = queries.shape
        output = queries.new_empty(batch, steps, heads, width).transpose(1, 2)  # heads side by side for what follows
        rows, scale = table.t().contiguous(), 1 / math.sqrt(width)
        for group in _groups(queries):
            query, key, value = _stacked(queries[group].flip(2)), _stacked(keys[group]), _stacked(values[group])
            query, mixed, bias_rows = query.mul_(scale), torch.empty_like(query), rows[group[1]]
            for block in blocks:
                here = slice(steps - block.stop, steps - block.start)
                weights = _weights(query[:, here], key, block, bias_rows)
                torch.bmm(weights, value[:, : block.keys], out=mixed[:, here])
            output[group] = mixed.view(-1, len(bias_rows), steps, width).flip(2)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        queries, keys, values, table = ctx.saved_tensors
        _, _, steps, width = queries.shape
        rows, scale = table.t().contiguous(), 1 / math.sqrt(width)
        grad_queries, grad_keys, grad_values = (torch.empty_like(x) for x in (queries, keys, values))
        grad_table = torch.zeros_like(rows)
        for group in _groups(queries):
            query, key, value = _stacked(queries[group].flip(2)), _stacked(keys[group]), _stacked(values[group])
            query, bias_rows, grad_mixed = query.mul_(scale), rows[group[1]], _stacked(gradients[0][group].flip(2))
            grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for block in ctx.blocks:
                here, seen = slice(steps - block.stop, steps - block.start), slice(0, block.keys)
                weights = _weights(query[:, here], key, block, bias_rows)
                grad_value[:, seen].baddbmm_(weights.transpose(1, 2), grad_mixed[:, here])
                grad_weights = torch.bmm(grad_mixed[:, here], value[:, seen].transpose(1, 2))
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                torch.bmm(grad_scores, key[:, seen], out=grad_query[:, here])
                grad_key[:, seen].baddbmm_(grad_scores.transpose(1, 2), query[:, here])
                block.collect(grad_scores, grad_table[group[1]])
            shape = (-1, len(bias_rows), steps, width)
            torch.mul(grad_query.view(shape).flip(2), scale, out=grad_queries[group])
            grad_keys[group], grad_values[group] = grad_key.view(shape), grad_value.view(shape)
        grad_table[:, -1] = 0  # the row of -inf is no parameter
        return grad_queries, grad_keys, grad_values, grad_table.t(), None


def _stacked(x: Tensor) -> Tensor:
    """``[B, H, S, d]`` -> ``[B H, S, d]`` in memory of its own."""
    return x.clone(memory_format=torch.contiguous_format).flatten(0, 1)


def _weights(query: Tensor, key: Tensor, block: QueryBlock, rows: Tensor) -> Tensor:
    """Softmax weights ``[B H, Q, N]`` of a block's scaled queries ``[B H, Q, d]``, with bias ``rows [H, R]``."""
    scores = block.bias(rows, len(query) // len(rows))
    return torch.softmax(scores.baddbmm_(query, key[:, : block.keys].transpose(1, 2)), -1)


def _groups(queries: Tensor) -> Iterator[tuple[slice, slice]]:
    """Clips and heads to handle at once: a head of several clips (they share its bias), or several heads of all."""
    batch, heads, steps, _ = queries.shape
    together = max(1, SCORES_AT_ONCE * torch.get_num_threads() // (QUERY_BLOCK_STEPS * steps))
    clips = min(batch, together)
    for head in range(0, heads, together // clips):
        for clip in range(0, batch, clips):
            yield slice(clip, clip + clips), slice(head, head + together // clips)
