"""Parts of the network for training on the CPU: gradients by hand, a few rows at a time.

Left to autograd, RMS norm, gated feed-forward, output heads and cross-entropy read and write every intermediate from
main memory, and on a CPU that costs as much as the arithmetic. Here each block of rows passes through all of its
operations while it is in the cache, and less is kept for the backward pass. Rows are stored at a distance that is a
multiple of a cache line: the paper's inner width of 1365 is odd, which slows matrix products down by a third. The
gradient of RMS norm is a compiled function where there can be one.

The formulae are those of :class:`~hafm_lightning.modeling.transformer.RMSNorm`, ``GEGLU``,
:meth:`TokenModel.head <hafm_lightning.modeling.token_model.TokenModel.head>` and ``cross_entropy``, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.modeling import compiled
from hafm_lightning.modeling.compiled.doors import DoesNotFit

ROWS_AT_ONCE = 256
"""Rows of logits handled at once: few enough for the cache."""
FEEDFORWARD_ROWS_AT_ONCE = 1024
"""Rows of the feed-forward handled at once: its products gain more from many rows than the rest from the cache."""
ALIGNMENT = 16
"""Floats in a cache line."""


def rowwise(x: Tensor) -> bool:
    """Whether ``x`` is in training on the CPU in float32, which the functions below are for."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and x.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension."""
    return _RMSNorm.apply(x, weight, epsilon)  # type: ignore[no-any-return, no-untyped-call]


def split_heads(projected: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, S, 3 D]`` -> queries, keys and values ``[B, H, S, d]`` of ``H = count`` heads: views."""
    return _SplitHeads.apply(projected, count)  # type: ignore[no-any-return, no-untyped-call]


def gated_feedforward(x: Tensor, expand: tuple[Tensor, Tensor], contract: tuple[Tensor, Tensor]) -> Tensor:
    """GEGLU of ``x [..., D]`` with (weight, bias) of both linear layers."""
    rows: Tensor = _GatedFeedForward.apply(x.flatten(0, -2), *expand, *contract)  # type: ignore[no-untyped-call]
    return rows.view(x.shape)


def heads(hidden: Tensor, weight: Tensor, bias: Tensor, steps: Sequence[slice]) -> Tensor:
    """Logits ``[B, K, T, V]``: head ``k`` (``weight [K, V, D]``) at ``steps[k]`` of ``hidden [B, S, D]``."""
    return _Heads.apply(hidden, weight, bias, steps)  # type: ignore[no-any-return, no-untyped-call]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, ``[N]``, of logits ``[N, V]`` for true ids ``[N]``."""
    return _CrossEntropy.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = gradients
        x, weight, scale = ctx.saved_tensors
        if compiled.available():
            from hafm_lightning.modeling.compiled.norm_rows import norm_backward

            with suppress(DoesNotFit):
                return *norm_backward(x, weight, scale, grad), None
        normalised = x * scale
        weighted = grad * normalised
        inner = (weighted @ weight).unsqueeze(-1).div_(-x.shape[-1])
        grad_weight = weighted.flatten(0, -2).sum(0)
        return torch.mul(grad, weight, out=weighted).addcmul_(normalised, inner).mul_(scale), grad_weight, None


class _SplitHeads(torch.autograd.Function):
    """Autograd would stack the three gradients and then bring them into the order of ``projected``."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, count: int) -> tuple[Tensor, ...]:
        batch, steps, _ = projected.shape
        return projected.view(batch, steps, 3, count, -1).permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        batch, count, steps, width = gradients[0].shape
        grad = gradients[0].new_empty(batch, steps, 3, count, width)
        for part, gradient in zip(grad.unbind(2), gradients, strict=True):
            part.copy_(gradient.transpose(1, 2))
        return grad.flatten(2), None


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        rows, inner = x.shape[0], w_out.shape[1]
        expanded, gates = _padded(x, rows, 2 * inner), _padded(x, rows, inner)
        gated_rows = _padded(x, min(rows, FEEDFORWARD_ROWS_AT_ONCE), inner)
        output = torch.empty_like(x)
        for here in _blocks(rows, FEEDFORWARD_ROWS_AT_ONCE):
            value, gate = torch.addmm(b_in, x[here], w_in.t(), out=expanded[here]).chunk(2, -1)
            torch.ops.aten.gelu.out(gate, out=gates[here])
            gated = torch.mul(value, gates[here], out=gated_rows[: len(value)])
            torch.addmm(b_out, gated, w_out.t(), out=output[here])
        ctx.save_for_backward(x, w_in, w_out, expanded, gates)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        (grad,) = gradients
        x, w_in, w_out, expanded, gates = ctx.saved_tensors
        rows, inner = gates.shape
        grad_x, grad_w_in = torch.empty_like(x), torch.zeros_like(w_in)
        grad_w_out = _padded(w_out, w_out.shape[0], inner).zero_()
        grad_b_in, grad_b_out = x.new_zeros(2 * inner), x.new_zeros(w_out.shape[0])
        at_once = min(rows, FEEDFORWARD_ROWS_AT_ONCE)
        grad_expanded, gated_rows = _padded(x, at_once, 2 * inner), _padded(x, at_once, inner)
        for here in _blocks(rows, FEEDFORWARD_ROWS_AT_ONCE):
            value, gate = expanded[here].chunk(2, -1)
            outer, count = grad[here], len(value)
            grad_w_out.addmm_(outer.t(), torch.mul(value, gates[here], out=gated_rows[:count]))
            grad_b_out.add_(outer.sum(0))
            grad_gated = torch.mm(outer, w_out, out=gated_rows[:count])
            both = grad_expanded[:count]
            grad_value, grad_gate = both.chunk(2, -1)
            torch.mul(grad_gated, gates[here], out=grad_value)
            torch.ops.aten.gelu_backward.grad_input(grad_gated.mul_(value), gate, grad_input=grad_gate)
            grad_w_in.addmm_(both.t(), x[here])
            grad_b_in.add_(both.sum(0))
            torch.mm(both, w_in, out=grad_x[here])
        return grad_x, grad_w_in, grad_b_in, grad_w_out.contiguous(), grad_b_out


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, steps: Sequence[slice]) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.steps = steps
        frames = len(range(*steps[0].indices(hidden.shape[1])))
        logits = hidden.new_empty(len(hidden), len(bias), frames, bias.shape[1])
        for clip, codebook in product(range(len(hidden)), range(len(weight))):
            rows = hidden[clip, steps[codebook]]
            torch.addmm(bias[codebook], rows, weight[codebook].t(), out=logits[clip, codebook])
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = gradients
        hidden, weight = ctx.saved_tensors
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        grad_bias = weight.new_zeros(weight.shape[:2])
        for clip, codebook in product(range(len(hidden)), range(len(weight))):
            rows, grad_rows = hidden[clip, ctx.steps[codebook]], grad_hidden[clip, ctx.steps[codebook]]
            for here in _blocks(len(rows), ROWS_AT_ONCE):
                outer = grad[clip, codebook, here]
                grad_rows[here].addmm_(outer, weight[codebook])
                grad_weight[codebook].addmm_(outer.t(), rows[here])
                grad_bias[codebook].add_(outer.sum(0))
        return grad_hidden, grad_weight, grad_bias, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        losses = logits.new_empty(len(logits))
        for here in _blocks(len(logits), ROWS_AT_ONCE):
            log_probabilities = torch.log_softmax(logits[here], -1)
            losses[here] = log_probabilities.gather(1, targets[here, None])[:, 0].neg_()
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        grad = torch.empty_like(logits)
        minus_one = grad.new_full((1, 1), -1.0)
        for here in _blocks(len(logits), ROWS_AT_ONCE):
            rows = torch.softmax(logits[here], -1)
            rows.scatter_add_(1, targets[here, None], minus_one.expand(len(rows), 1))
            torch.mul(rows, gradients[0][here, None], out=grad[here])
        return grad, None


def _blocks(rows: int, at_once: int) -> Iterator[slice]:
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def _padded(like: Tensor, rows: int, width: int) -> Tensor:
    """An uninitialised ``[rows, width]`` whose rows begin at multiples of a cache line."""
    return like.new_empty(rows, -(-width // ALIGNMENT) * ALIGNMENT)[:, :width]
