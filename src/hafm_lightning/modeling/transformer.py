"""The backbone of every stage, read top to bottom. Notable choices:

* RMSNorm before each part (arXiv 1910.07467), no bias in norms.
* QK normalisation: queries and keys pass an RMSNorm over the head width, so that logits stay bounded in FP16.
* GEGLU feed-forward (arXiv 2002.05202) of inner width ``int(2/3 feedforward)``, which keeps the parameter count of an
  ordinary feed-forward of that width; with biases this reproduces the paper's 38.6 / 42.5 / 44.1 M parameters.
* A T5 relative bias shared by all layers (``relative_position``); no absolute positions.
* One forward for training, prefill and decoding: each layer is given how queries meet keys (``attention.Mixer``).

Source: HAFM (arXiv 2604.09054), section 3.4: 12 layers, width 512, 8 heads, feed-forward 2048.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from hafm_lightning import limits
from hafm_lightning.modeling.attention import Mixer


@dataclass(frozen=True)
class BackboneConfig:
    """Size of the Transformer; the defaults are the paper's.

    Attributes:
        layers: Number of layers.
        width: Width ``D`` of the residual stream.
        heads: Attention heads ``H``; must divide ``width``.
        feedforward: Nominal feed-forward width; GEGLU's inner width is two thirds of it.
        dropout: Probability of dropping an element of each residual branch while training.
        checkpoint_layers: Recompute each layer's activations in the backward pass: less memory, a third more time.
    """

    layers: int = 12
    width: int = 512
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.0
    checkpoint_layers: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1 or self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}, with at least one layer")
        if self.feedforward < 2:
            raise ValueError(f"feedforward must be at least 2, got {self.feedforward}")
        most = limits.current()
        for name, size, limit in (
            ("layers", self.layers, most.layers),
            ("width", self.width, most.width),
            ("feedforward", self.feedforward, 16 * most.width),
            ("parameters", self.parameters, most.parameters),
        ):
            if size > limit:
                raise ValueError(f"{name} {size}: at most {limit} are built; HAFM_LIMITS changes that")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def parameters(self) -> int:
        """Weights of all matrices of the layers: four of attention, three of the gated feed-forward."""
        return self.layers * self.width * (4 * self.width + 3 * self.inner_width)

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def inner_width(self) -> int:
        """Width of the gated inner layer: ``int(2/3 feedforward)``, 1365 in the paper."""
        return 2 * self.feedforward // 3


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, computed in float32."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> the same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.epsilon).to(x.dtype)


class GEGLU(nn.Module):
    """Feed-forward with a GELU gate: ``(x W + b) * gelu(x V + c)``, then back to the width."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * inner_width)
        self.contract = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.gelu(gate) * value)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.project_in = nn.Linear(config.width, 3 * config.width)
        self.project_out = nn.Linear(config.width, config.width)
        self.query_norm = RMSNorm(config.head_width)
        self.key_norm = RMSNorm(config.head_width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, S, D]`` -> normalised queries, normalised keys, and values, each ``[B, H, S, d]``."""
        batch, steps, _ = x.shape
        queries, keys, values = self.project_in(x).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.query_norm(queries), self.key_norm(keys), values

    def forward(self, x: Tensor, layer: int, mixer: Mixer, first: int = 0) -> Tensor:
        """``[B, S, D]`` -> the steps from ``first`` on, ``[B, S - first, D]``; ``layer`` is the layer's number."""
        mixed = mixer(layer, *self.split(x)).transpose(1, 2)[:, first:]
        return self.project_out(mixed.flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.feedforward_norm = RMSNorm(config.width)
        self.feedforward = GEGLU(config.width, config.inner_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layer: int, mixer: Mixer, first: int = 0) -> Tensor:
        """``[B, S, D]`` -> the steps from ``first`` on, ``[B, S - first, D]``."""
        x = x[:, first:] + self.dropout(self.attention(self.attention_norm(x), layer, mixer, first))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The stack of layers with a final norm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        layers = [Layer(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.final_norm = RMSNorm(config.width)
        self.apply(_initialise)
        for layer in layers:  # residual branches start small, so that depth does not scale the stream
            for branch in (layer.attention.project_out, layer.feedforward.contract):
                nn.init.normal_(branch.weight, std=0.02 / math.sqrt(2 * config.layers))

    def forward(self, x: Tensor, mixer: Mixer, first: int = 0) -> Tensor:
        """Inputs ``[B, S, D]`` -> hidden states from step ``first`` on, ``[B, S - first, D]``.

        The last layer computes nothing for earlier steps but what the later ones look at.
        """
        for number, layer in enumerate(self.layers):
            begin = first if number == len(self.layers) - 1 else 0
            if self.config.checkpoint_layers and self.training:
                x = torch.utils.checkpoint.checkpoint(layer, x, number, mixer, begin, use_reentrant=False)
            else:
                x = layer(x, number, mixer, begin)
        return self.final_norm(x)  # type: ignore[no-any-return]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
