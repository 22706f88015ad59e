"""Norms and feed-forwards for training on the CPU: gradients by hand, a few rows at a time.

Autograd reads and writes every intermediate of RMS norm and gated feed-forward in main memory, which on a CPU costs as
much as the arithmetic. Here a block of rows passes through all of its operations while it is in the cache, and less is
stored for the backward pass. Measured with two layers of the semantic stage, as parts of a training step: the
feed-forward 11 %, of which 7 % come from rows that begin at multiples of a cache line (the paper's inner width of 1365
is odd, which slows matrix products down); the gradient of the norms 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cpu.codegen.doors import DoesNotFit
from hafm_lightning.modeling.transformer import GEGLU, RMSNorm

ROWS_AT_ONCE = 1024
"""Rows of the feed-forward handled at once: its products gain more from many rows than the rest from the cache."""
ALIGNMENT = 16
"""Floats in a cache line."""


def can_train_by_rows(x: Tensor) -> bool:
    """Whether ``x`` is in training on the CPU in float32, which the functions below are for."""
    trains = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return trains and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class RowwiseRMSNorm(Twin, RMSNorm):
    """An RMS norm whose gradient is a compiled function."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`RMSNorm.forward`."""
        if not can_train_by_rows(x):
            return super().forward(x)
        return _NormFunction.apply(x, self.weight, self.epsilon)  # type: ignore[no-any-return, no-untyped-call]


class RowwiseGEGLU(Twin, GEGLU):
    """A gated feed-forward that trains by blocks of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`GEGLU.forward`."""
        if not can_train_by_rows(x):
            return super().forward(x)
        weights = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
        rows: Tensor = _GatedFeedForward.apply(x.flatten(0, -2), *weights)  # type: ignore[no-untyped-call]
        return rows.view(x.shape)


class _NormFunction(torch.autograd.Function):
    """``x / rms(x) * weight`` over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        from hafm_lightning.kernels.cpu.codegen.norm_rows import norm_backward

        (grad,) = gradients
        x, weight, scale = ctx.saved_tensors
        with suppress(DoesNotFit):
            return *norm_backward(x, weight, scale, grad), None
        normalised = x * scale
        weighted = grad * normalised
        inner = (weighted @ weight).unsqueeze(-1).div_(-x.shape[-1])
        grad_weight = weighted.flatten(0, -2).sum(0)
        return torch.mul(grad, weight, out=weighted).addcmul_(normalised, inner).mul_(scale), grad_weight, None


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        rows, inner = x.shape[0], w_out.shape[1]
        expanded, gates = _padded(x, rows, 2 * inner), _padded(x, rows, inner)
        gated_rows = _padded(x, min(rows, ROWS_AT_ONCE), inner)
        output = torch.empty_like(x)
        for here in _blocks(rows):
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
        at_once = min(rows, ROWS_AT_ONCE)
        grad_expanded, gated_rows = _padded(x, at_once, 2 * inner), _padded(x, at_once, inner)
        for here in _blocks(rows):
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


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def _padded(like: Tensor, rows: int, width: int) -> Tensor:
    """An uninitialised ``[rows, width]`` whose rows begin at multiples of a cache line."""
    return like.new_empty(rows, -(-width // ALIGNMENT) * ALIGNMENT)[:, :width]
