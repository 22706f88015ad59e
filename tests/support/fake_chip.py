"""Stands in for the compiler of FlexAttention's kernels, some of which fail as on small chips."""

import math
import warnings

import torch
from attention_cases import gradients, plain_attention, setting
from tiny_models import tiny_model
from torch._inductor.exc import InductorError

from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda.flex_attention import FlexBias, FlexRelativePosition
from hafm_lightning.kernels.cuda.flex_tiles import BACKWARD, FORWARD
from hafm_lightning.modeling.relative_position import RelativePosition

TWINS = {"flex": {RelativePosition: FlexRelativePosition}, "plain": {}}


def out_of_shared_memory():
    inner = RuntimeError(
        "No valid triton configs. OutOfMemoryError: out of resource: triton_tem_fused_flex_attention_0"
    )
    return InductorError(inner, None)


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, _gradient):
        raise ctx.error


class FakeChip:
    """Stands in for the compiler: kernels of plain operations, with gradients, some of which cannot be built.

    Args:
        forward: Whether the forward kernel can be built with such ``kernel_options``.
        backward: The same for the backward kernel, which is built at the first backward pass.
        error: Makes what is raised where it cannot.
    """

    def __init__(self, forward=lambda options: True, backward=lambda options: True, error=out_of_shared_memory):
        self.forward, self.backward, self.error = forward, backward, error
        self.tried, self.calls, self.inputs = [], 0, []

    def compile_flex(self, name, device):
        del name, device
        fresh = True

        def kernel(queries, keys, values, score_mod, block_mask, options):
            nonlocal fresh
            options = options or {}
            if fresh:
                self.tried.append(options)
                self.inputs.append((queries, keys, values))
            fresh, self.calls = False, self.calls + 1
            if not self.forward(options):
                raise self.error()
            batch, heads, steps, width = queries.shape
            scores = queries @ keys.transpose(-2, -1) / math.sqrt(width)
            clip, head = torch.arange(batch)[:, None, None, None], torch.arange(heads)[:, None, None]
            query, key = torch.arange(steps, dtype=torch.int32)[:, None], torch.arange(steps, dtype=torch.int32)
            scores = score_mod(scores, clip, head, query, key)
            scores = scores.masked_fill(~block_mask.mask_mod(clip, head, query, key), -math.inf)
            output = scores.softmax(-1).to(values.dtype) @ values
            return output if self.backward(options) else FailsInBackward.apply(output, self.error())

        return kernel


def network(config, kind):
    """A tiny network whose attention is of one kind, with no other kernels."""
    model = tiny_model(config, kernels="none")
    swap(model, TWINS[kind])
    return model


def tiles_of(options, way):
    names = {"forward": ("fwd_BLOCK_M", "fwd_BLOCK_N"), "backward": ("bwd_BLOCK_M1", "bwd_BLOCK_N1")}[way]
    return tuple(options[name] for name in names) if names[0] in options else None


def fails_first(count, way):
    """Whether the tiles are none of the first ``count`` of the list."""
    failing = [None if t is None else (t.queries, t.keys) for t in (FORWARD, BACKWARD)[way == "backward"][:count]]
    return lambda options: tiles_of(options, way) not in failing


def check(case, **sizes):
    """Values and gradients against float64; the warnings that were given."""
    module, positions, qkv = setting(case, **sizes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bias = FlexBias.of(module, positions)
        for _ in range(3):
            output = bias.attend(*qkv, module.table())
            expected = plain_attention(qkv, module, positions)
            torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
            for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
                torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)
    return [str(warning.message) for warning in caught]
