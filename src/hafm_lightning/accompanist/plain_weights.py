"""A layer's weights as decoding on a CPU keeps them: norms multiplied in, widths padded, rounded to int8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.modeling.transformer import Layer, RMSNorm

ALIGNMENT = 32
"""Widths are padded to a multiple of this."""

PackedPrecision = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class PlainLayer:
    """A layer's weights with the norms before its projections multiplied in, and GEGLU's width padded; float32.

    Attributes:
        project_in: Weight ``[3 D, D]`` and bias.
        project_out: Weight ``[D, D]`` and bias.
        expand: Weight ``[2 I, D]`` and bias, values before gates.
        contract: Weight ``[D, I]`` and bias; the padding is 0 * gelu(0).
        head_factors: Factors ``[2, d]`` of normalised queries and keys.
        heads: Number of heads.
        least: What norms add to a sum of squares, of the width and of a head.
    """

    project_in: tuple[Tensor, Tensor]
    project_out: tuple[Tensor, Tensor]
    expand: tuple[Tensor, Tensor]
    contract: tuple[Tensor, Tensor]
    head_factors: Tensor
    heads: int
    least: tuple[float, float]

    @classmethod
    def of(cls, layer: Layer) -> PlainLayer:
        """The weights of a layer."""
        attention, feedforward = layer.attention, layer.feedforward
        inner = feedforward.contract.in_features
        padding = -inner % ALIGNMENT
        expand = (feedforward.expand.weight.detach() * norm_factors(layer.feedforward_norm)).view(2, inner, -1)
        biases = F.pad(feedforward.expand.bias.detach().view(2, inner), (0, padding))
        return cls(
            project_in=(
                attention.project_in.weight.detach() * norm_factors(layer.attention_norm),
                attention.project_in.bias.detach(),
            ),
            project_out=(attention.project_out.weight.detach(), attention.project_out.bias.detach()),
            expand=(F.pad(expand, (0, 0, 0, padding)).flatten(0, 1), biases.flatten()),
            contract=(F.pad(feedforward.contract.weight.detach(), (0, padding)), feedforward.contract.bias.detach()),
            head_factors=torch.stack([norm_factors(attention.query_norm), norm_factors(attention.key_norm)]),
            heads=attention.heads,
            least=(norm_least(layer.attention_norm), norm_least(attention.query_norm)),
        )

    @property
    def step_factors(self) -> Tensor:
        """:attr:`head_factors` with the scale of the scores in the queries'."""
        scale = 1 / math.sqrt(self.head_factors.shape[-1])
        return self.head_factors * torch.tensor([scale, 1.0], dtype=torch.float32)[:, None]


def norm_factors(norm: RMSNorm) -> Tensor:
    """What follows :func:`normalised` in an RMS norm: its weight and the root of its width, ``[width]``."""
    return norm.weight.detach() * math.sqrt(norm.weight.shape[-1])


def norm_least(norm: RMSNorm) -> float:
    """What an RMS norm adds to the sum of squares."""
    return norm.weight.shape[-1] * norm.epsilon


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[..., out, in]`` in int8, 255 levels for each output, and the size of a level ``[..., out]``."""
    scale = weight.abs().amax(dim=-1).clamp(min=1e-12) / 127
    return (weight / scale[..., None]).round().to(torch.int8), scale
