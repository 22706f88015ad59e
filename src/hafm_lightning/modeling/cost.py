"""What a training step of a network costs: parameters, FLOPs, memory; from its settings alone, nothing is built.

Choices:

* FLOPs are those that the mathematics needs: matrix products forward and backward (three times the forward), attention
  counted for the pairs of steps that see each other, nothing for recomputation, look-ups or normalisation. They divide
  measured seconds into model FLOPs utilisation (MFU).
* Memory is what autograd keeps for the backward pass, tensor by tensor, plus weights, gradients and AdamW's moments.
  The bytes a step and layer are read off the implementation; a test compares them with what autograd really saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hafm_lightning.modeling.layout import SequencePlan
from hafm_lightning.modeling.token_model import TokenModelConfig

Path = Literal["cpu", "cpu-mixed", "cuda-mixed"]
"""Implementations whose memory is known: float32 on the CPU, and autocast to half precision on CPU or CUDA."""

GIB = 2**30
BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32."""


@dataclass(frozen=True)
class LayerBytes:
    """What a layer keeps for each step: multiples of the width, of GEGLU's inner width, of the heads, and a rest.

    Attributes:
        width: Bytes for each of ``D``.
        inner: Bytes for each of the inner width.
        heads: Bytes for each head.
        rest: Bytes besides.
    """

    width: int
    inner: int
    heads: int
    rest: int


LAYER_BYTES: dict[Path, LayerBytes] = {
    # two residual streams, both norms' outputs, projected and normalised queries, keys, values, mixed values;
    # GEGLU's expanded rows and gates; the log-sum-exp of each query
    "cpu": LayerBytes(width=40, inner=12, heads=12, rest=8),
    # the same with half-precision copies for the products, attention itself in float32
    "cpu-mixed": LayerBytes(width=54, inner=8, heads=12, rest=8),
    # attention in half precision, which keeps the log-sum-exp of each query
    "cuda-mixed": LayerBytes(width=34, inner=8, heads=12, rest=8),
}
LOGIT_BYTES: dict[Path, int] = {"cpu": 16, "cpu-mixed": 20, "cuda-mixed": 20}
"""For each logit: the stacked logits, rows for the cross-entropy, log-probabilities, gradients of the backward pass."""


def visible_pairs(plan: SequencePlan, causal: bool, prefix_mask: str) -> int:
    """Pairs of (query, key) that attention looks at in one sequence of ``S`` steps.

    Causal: ``S (S + 1) / 2``. A bidirectional prefix adds the later half of its own square.
    """
    steps, before = plan.steps, plan.condition_steps
    if not causal:
        return steps * steps
    pairs = steps * (steps + 1) // 2
    return pairs + before * (before - 1) // 2 if prefix_mask == "bidirectional" else pairs


def forward_flops(config: TokenModelConfig, clips: int, frames: int) -> float:
    """FLOPs of one forward pass as in training (``nonautoregressive``: of one codebook).

    Args:
        config: The network.
        clips: Batch size ``B``.
        frames: Target frames ``T`` of each clip.
    """
    layout, backbone = config.layout, config.backbone
    plan = layout.plan(frames)
    width, inner = backbone.width, backbone.inner_width
    for_attention, after = 3 * width * width, width * width + 3 * width * inner
    products = backbone.layers * plan.steps * (for_attention + after)
    products -= plan.condition_steps * after  # the last layer's, which nothing looks at
    attention = backbone.layers * 2 * width * visible_pairs(plan, layout.causal, config.prefix_mask)
    codebooks = 1 if layout.pattern == "nonautoregressive" else layout.target.codebooks
    heads = frames * codebooks * width * layout.target.vocabulary
    return 2.0 * clips * (products + attention + heads)


def training_flops(config: TokenModelConfig, clips: int, frames: int) -> float:
    """FLOPs of one training step: forward, and twice as much backward."""
    return 3 * forward_flops(config, clips, frames)


def activation_bytes(config: TokenModelConfig, clips: int, frames: int, path: Path) -> int:
    """Bytes that the layers keep for the backward pass; with ``checkpoint_layers`` their inputs and one layer's all."""
    backbone, steps = config.backbone, clips * config.layout.plan(frames).steps
    layer = LAYER_BYTES[path]
    kept = layer.width * backbone.width + layer.inner * backbone.inner_width + layer.heads * backbone.heads + layer.rest
    if backbone.checkpoint_layers:
        return steps * (kept + backbone.layers * 4 * backbone.width)
    return steps * backbone.layers * kept


def training_bytes(config: TokenModelConfig, parameters: int, clips: int, frames: int, path: Path) -> int:
    """Bytes of a training step at its peak: the start of the backward pass, or the optimizer's step if that is more."""
    layout = config.layout
    codebooks = 1 if layout.pattern == "nonautoregressive" else layout.target.codebooks
    logits = clips * frames * codebooks * layout.target.vocabulary * LOGIT_BYTES[path]
    halves = 0 if path == "cpu" else 2 * parameters
    backward = 12 * parameters + halves + activation_bytes(config, clips, frames, path) + logits
    return max(backward, BYTES_PER_PARAMETER * parameters)
