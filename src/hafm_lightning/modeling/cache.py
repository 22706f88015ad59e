"""Keys and values of the steps written so far, and the mixers that fill and read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.modeling.attention import Mixer
from hafm_lightning.modeling.transformer import BackboneConfig


class KeyValueCache:
    """Keys and values of all layers, preallocated; unwritten steps hold zeros and are never read.

    Attributes:
        entries: Keys and values, ``[layers, 2, B, H, capacity, d]``; ``keys`` and ``values`` are its halves.
        capacity: Steps that the cache can hold.
    """

    def __init__(
        self, config: BackboneConfig, batch: int, capacity: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, 2, batch, config.heads, capacity, config.head_width)
        self.entries = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.entries.unbind(1)
        self.capacity = capacity

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values ``[B, H, Q, d]`` at steps ``start : start + Q``."""
        stop = start + keys.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} steps, step {stop} was written")
        self.keys[layer, :, :, start:stop] = keys
        self.values[layer, :, :, start:stop] = values

    def copy_steps(self, source: KeyValueCache, first: int, count: int) -> None:
        """Make ``count`` steps of ``source`` (this cache, or one like it) from ``first`` on this cache's first ones."""
        self.entries[..., :count, :] = source.entries[..., first : first + count, :].clone()


@dataclass(frozen=True)
class Prefill:
    """The mixer for the first steps of a sequence: stores them in an empty cache; they attend to each other."""

    cache: KeyValueCache
    mixer: Mixer

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As :class:`~hafm_lightning.modeling.attention.Mixer`."""
        self.cache.write(layer, 0, keys, values)
        return self.mixer(layer, queries, keys, values)


@dataclass(frozen=True)
class CachedSteps:
    """The mixer for steps that follow those in a cache: stores them there; they attend to all that the bias allows.

    Attributes:
        cache: Cache that receives the new keys and values.
        start: First new step.
        bias: Mask and bias of the new steps against all steps up to the last one that they see, ``[H, Q, N]``.
    """

    cache: KeyValueCache
    start: int
    bias: Tensor

    @property
    def visible(self) -> int:
        """How many cached steps are looked at, ``N``."""
        return self.bias.shape[-1]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As :class:`~hafm_lightning.modeling.attention.Mixer`; computes in the type of the cache."""
        self.cache.write(layer, self.start, keys, values)
        return self.attend(layer, queries)

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """Mixed values ``[B, H, Q, d]`` of queries whose keys and values are stored."""
        keys, values = self.cache.entries[layer, :, :, :, : self.visible]
        bias = self.bias[None].to(keys.dtype)
        mixed = F.scaled_dot_product_attention(queries.to(keys.dtype), keys, values, attn_mask=bias)
        return mixed.to(queries.dtype)
