"""Geometries of attention, and plain attention in float64."""

import math

import torch
from tiny_models import RICH_CONDITIONS

from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

CASES = {
    "causal": ("delay", "aligned", "index", "causal"),
    "causal-prefix-index": ("flattened", "prefix", "index", "causal"),
    "causal-prefix-time": ("flattened", "prefix", "time", "causal"),
    "bidirectional-prefix": ("flattened", "prefix", "time", "bidirectional"),
    "both-ways": ("nonautoregressive", "prefix", "time", "causal"),
    "delay-prefix-time": ("delay", "prefix", "time", "causal"),
}


def setting(case, frames=6, heads=3, width=8, batch=2):
    """Bias module with random tables, positions, and queries, keys, values ``[B, H, S, d]``."""
    pattern, conditioning, kind, prefix_mask = CASES[case]
    layout = SequenceLayout.of(list(RICH_CONDITIONS), "instrumental_coarse", pattern, conditioning)
    positions = StepPositions.of(layout.plan(frames), "cpu")
    segments = 4 if conditioning == "prefix" else 1
    module = RelativePosition(heads, kind, layout.causal, segments, prefix_mask)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    shape = (3, batch, heads, positions.steps, width)
    return module, positions, torch.randn(shape, generator=generator).requires_grad_()


def plain_attention(qkv, module, positions):
    """Softmax attention in float64, a row of the table for each pair looked up one by one."""
    steps = torch.arange(positions.steps)
    bias = module.table().double()[module.rows(positions, steps, steps)].permute(2, 0, 1)
    queries, keys, values = qkv.double()
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / math.sqrt(qkv.shape[-1]) + bias
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdim=True), values)


def gradients(output, qkv, module):
    """Gradients of a fixed random projection of the output."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    return torch.autograd.grad((output * weight).sum(), [qkv, *module.parameters()])
