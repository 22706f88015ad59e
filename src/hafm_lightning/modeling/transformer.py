"""The backbone of every stage, read top to bottom. Notable choices:

* RMSNorm before each part (arXiv 1910.07467), no bias in norms.
* QK normalisation: queries and keys pass an RMSNorm over the head width, so that logits stay bounded in FP16.
* GEGLU feed-forward (arXiv 2002.05202) of inner width ``int(2/3 feedforward)``, which keeps the parameter count of an
  ordinary feed-forward of that width; with biases this reproduces the paper's 38.6 / 42.5 / 44.1 M parameters.
* A T5 relative bias shared by all layers (``relative_position``); no absolute positions.
* A preallocated key-value cache: decoding writes in place and never concatenates.

Source: HAFM (arXiv 2604.09054), section 3.3: 12 layers, width 512, 8 heads, feed-forward 2048.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from hafm_lightning.modeling.attention import Geometry, attend
from hafm_lightning.modeling.rowwise import gated_feedforward, rms_norm, rowwise, split_heads


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
        if self.layers < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}, with at least one layer")
        if self.feedforward < 2:
            raise ValueError(f"feedforward must be at least 2, got {self.feedforward}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def inner_width(self) -> int:
        """Width of the gated inner layer: ``int(2/3 feedforward)``, 1365 in the paper."""
        return int(2 * self.feedforward / 3)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, computed in float32."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> the same shape and dtype."""
        if rowwise(x):
            return rms_norm(x, self.weight, self.epsilon)
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.epsilon).to(x.dtype)


class GEGLU(nn.Module):
    """Feed-forward with a GELU gate: ``(x W + b) * gelu(x V + c)``, then back to the width."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * inner_width)
        self.contract = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        if rowwise(x):
            expand, contract = self.expand, self.contract
            return gated_feedforward(x, (expand.weight, expand.bias), (contract.weight, contract.bias))
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.gelu(gate) * value)  # type: ignore[no-any-return]


class KeyValueCache:
    """Keys and values of the steps written so far, preallocated for all layers: ``[layers, B, H, capacity, d]``.

    Unwritten places hold zeros and are never read: the caller passes how many steps count.
    """

    def __init__(
        self, config: BackboneConfig, batch: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, 2, batch, config.heads, capacity, config.head_width)
        self.both = torch.zeros(shape, device=device, dtype=dtype)  # [layers, 2, B, H, capacity, d]
        self._layers = list(self.both)  # each [2, B, H, capacity, d]
        self._heads = [layer.flatten(1, 2).unbind() for layer in self._layers]  # keys, values [B H, capacity, d]
        self.keys, self.values = self.both.unbind(1)
        self.capacity = capacity

    def write(self, layer: int, start: Tensor | int, keys: Tensor, values: Tensor) -> None:
        """Store ``[B, H, Q, d]`` at steps ``start : start + Q``; a tensor ``start`` keeps shapes static (``Q`` = 1)."""
        if isinstance(start, Tensor):
            self.keys[layer].index_copy_(2, start, keys)
            self.values[layer].index_copy_(2, start, values)
            return
        stop = start + keys.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} steps, step {stop} was written")
        self.keys[layer, :, :, start:stop] = keys
        self.values[layer, :, :, start:stop] = values

    def write_step(self, layer: int, start: Tensor | int, both: Tensor) -> None:
        """Store the key and value of one step, ``[2, B, H, d]``."""
        if isinstance(start, Tensor):
            self._layers[layer].index_copy_(3, start, both[:, :, :, None])
        else:
            self._layers[layer].select(3, start).copy_(both)

    def heads(self, layer: int, visible: int) -> tuple[Tensor, Tensor]:
        """The first ``visible`` keys and values, each ``[B H, visible, d]``: views."""
        keys, values = self._heads[layer]
        return keys[:, :visible], values[:, :visible]


@dataclass(frozen=True)
class CachedSteps:
    """Where a cached forward stands.

    Attributes:
        cache: Cache that receives the new keys and values.
        start: First new step; an int64 tensor ``[1]`` where shapes must stay static.
        visible: How many cached steps the new ones may look at (the bias masks the rest).
        bias: Mask and bias ``[H, Q, visible]``.
    """

    cache: KeyValueCache
    start: Tensor | int
    visible: int
    bias: Tensor


class StepFunction(Protocol):
    """A decoding step of a few rows, from input to logits, made for one device."""

    def cache_dtype(self, rows: int) -> torch.dtype:
        """How the cache of so many rows is to be kept."""

    def takes(self, x: Tensor, at: CachedSteps) -> bool:
        """Whether the function was made for inputs ``[R, 1, D]`` of this shape and this cache."""

    def __call__(self, x: Tensor, at: CachedSteps, codebook: int | None) -> Tensor:
        """Logits ``[R, W, V]`` of one codebook (W = 1), or of all."""


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.project_in = nn.Linear(config.width, 3 * config.width)
        self.project_out = nn.Linear(config.width, config.width)
        self.query_norm = RMSNorm(config.head_width)
        self.key_norm = RMSNorm(config.head_width)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, steps, _ = x.shape
        projected = self.project_in(x)
        if rowwise(projected):
            queries, keys, values = split_heads(projected, self.heads)
        else:
            queries, keys, values = projected.view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.query_norm(queries), self.key_norm(keys), values

    def forward(self, x: Tensor, table: Tensor, geometry: Geometry, first: int = 0) -> Tensor:
        """A whole sequence ``[B, S, D]`` -> its steps from ``first`` on, ``[B, S - first, D]``."""
        queries, keys, values = self._split(x)
        mixed = attend(queries, keys, values, table, geometry).transpose(1, 2)[:, first:]
        return self.project_out(mixed.flatten(2))  # type: ignore[no-any-return]

    def prefill(self, x: Tensor, layer: int, table: Tensor, geometry: Geometry, cache: KeyValueCache) -> Tensor:
        """As :meth:`forward`, and keep keys and values as the cache's first steps."""
        queries, keys, values = self._split(x)
        cache.write(layer, 0, keys, values)
        mixed = attend(queries, keys, values, table, geometry)
        return self.project_out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def cached(self, x: Tensor, layer: int, at: CachedSteps) -> Tensor:
        """New steps ``[B, Q, D]`` that also see the cached ones."""
        queries, keys, values = self._split(x)
        cache = at.cache
        cache.write(layer, at.start, keys.to(cache.keys.dtype), values.to(cache.values.dtype))
        mixed = F.scaled_dot_product_attention(
            queries.to(cache.keys.dtype),
            cache.keys[layer, :, :, : at.visible],
            cache.values[layer, :, :, : at.visible],
            attn_mask=at.bias[None].to(cache.keys.dtype),
        )
        return self.project_out(mixed.transpose(1, 2).flatten(2).to(x.dtype))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.feedforward_norm = RMSNorm(config.width)
        self.feedforward = GEGLU(config.width, config.inner_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, table: Tensor, geometry: Geometry, first: int = 0) -> Tensor:
        """``[B, S, D]`` -> the steps from ``first`` on, ``[B, S - first, D]``."""
        x = x[:, first:] + self.dropout(self.attention(self.attention_norm(x), table, geometry, first))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))  # type: ignore[no-any-return]

    def prefill(self, x: Tensor, layer: int, table: Tensor, geometry: Geometry, cache: KeyValueCache) -> Tensor:
        """As :meth:`forward`, filling the cache."""
        x = x + self.attention.prefill(self.attention_norm(x), layer, table, geometry, cache)
        return x + self.feedforward(self.feedforward_norm(x))  # type: ignore[no-any-return]

    def cached(self, x: Tensor, layer: int, at: CachedSteps) -> Tensor:
        """New steps ``[B, Q, D]`` -> ``[B, Q, D]``."""
        x = x + self.attention.cached(self.attention_norm(x), layer, at)
        return x + self.feedforward(self.feedforward_norm(x))  # type: ignore[no-any-return]


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

    def forward(self, x: Tensor, table: Tensor, geometry: Geometry, first: int = 0) -> Tensor:
        """Inputs ``[B, S, D]``, bias table ``[R, H]`` -> hidden states from step ``first`` on, ``[B, S - first, D]``.

        The last layer computes nothing for earlier steps but what the later ones look at.
        """
        for number, layer in enumerate(self.layers, 1):
            kept = first if number == len(self.layers) else 0
            if self.config.checkpoint_layers and self.training:
                x = torch.utils.checkpoint.checkpoint(layer, x, table, geometry, kept, use_reentrant=False)
            else:
                x = layer(x, table, geometry, kept)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def prefill(self, x: Tensor, table: Tensor, geometry: Geometry, cache: KeyValueCache) -> Tensor:
        """First steps ``[B, P, D]`` into an empty cache -> their hidden states ``[B, P, D]``."""
        for number, layer in enumerate(self.layers):
            x = cast(Layer, layer).prefill(x, number, table, geometry, cache)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def cached(self, x: Tensor, at: CachedSteps) -> Tensor:
        """New steps ``[B, Q, D]`` after those in the cache -> their hidden states ``[B, Q, D]``."""
        for number, layer in enumerate(self.layers):
            x = cast(Layer, layer).cached(x, number, at)
        return self.final_norm(x)  # type: ignore[no-any-return]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
