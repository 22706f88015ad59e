"""A decoding step of one or two clips, from input vector to logits, as one compiled function with the weights it reads.

:mod:`~hafm_lightning.accompanist.step_kernel` holds the function, this module what it is called with. Choices:

* with bf16 or int8 weights keys and values are kept in bf16: late steps read more of them than of weights;
* the final norm's weight is multiplied into the output heads, whose rows are padded to whole blocks;
* one step is made when the network is laid out, so that compiling does not fall into the first take.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.accompanist.plain_weights import PackedPrecision, PlainLayer, rounded
from hafm_lightning.modeling.compiled.doors import DoesNotFit, decode_step, room
from hafm_lightning.modeling.transformer import BackboneConfig, CachedSteps, KeyValueCache

MOST_ROWS = 4
"""Steps of more rows multiply matrices, which oneDNN does better."""
BF16_CACHE_ALIGNMENT = 32
"""Head widths that are no multiple of this keep their cache in float32."""


class CompiledStep:
    """The compiled step of one network.

    Args:
        config: Sizes of the backbone.
        layers: All layers.
        heads: Weights ``[K, V, D]`` of the output heads, with the final norm multiplied in, and biases ``[K, V]``.
        precision: How the weights are kept.
    """

    def __init__(
        self,
        config: BackboneConfig,
        layers: Sequence[PlainLayer],
        heads: tuple[Tensor, Tensor],
        precision: PackedPrecision,
    ) -> None:
        from hafm_lightning.accompanist import step_kernel

        self._step: Any = step_kernel.decode_step
        self._use_threads = step_kernel.use_threads
        self._phases, block = step_kernel.PHASES * len(layers) + 1, step_kernel.OUTPUTS_AT_ONCE
        self._weights = [
            array
            for name in ("project_in", "project_out", "expand", "contract")
            for array in stored([getattr(layer, name) for layer in layers], precision)
        ]
        weight, bias = heads
        self._codebooks, self._vocabulary, _ = weight.shape
        padding = -self._vocabulary % block
        weight, bias = F.pad(weight, (0, 0, 0, padding)), F.pad(bias, (0, padding))
        self._outputs, self._blocks = bias.shape[1], bias.shape[1] // block
        self._weights += stored([(weight.flatten(0, 1), bias.flatten())], precision)
        self._head_factors = torch.stack([layer.step_factors for layer in layers]).numpy()
        self._inner = layers[0].contract[0].shape[1]
        self._least = np.array(layers[0].least, np.float32)
        narrow = precision != "fp32" and config.head_width % BF16_CACHE_ALIGNMENT == 0
        self._cache_dtype = torch.bfloat16 if narrow else torch.float32
        self._door = decode_step(self._cache_dtype)
        self._sizes = {
            "width": config.width, "layers": len(layers), "heads": config.heads, "head_width": config.head_width,
        }  # fmt: skip
        self._kept = threading.local()
        nothing = KeyValueCache(config, 1, 1, "cpu", self._cache_dtype)
        x, bias = room(1, 1, config.width, zero=True), room(config.heads, 1, 1, zero=True)
        self(x, CachedSteps(nothing, 0, 1, bias), None)

    def cache_dtype(self, rows: int) -> torch.dtype:
        """How the cache of so many rows is to be kept."""
        return self._cache_dtype if rows <= MOST_ROWS else torch.float32

    def takes(self, x: Tensor, at: CachedSteps) -> bool:
        """Whether the inputs ``[R, 1, D]`` and the cache are such as this function was made for."""
        few = x.dim() == 3 and x.shape[1] == 1 and len(x) <= MOST_ROWS
        if not few or not isinstance(at.start, int) or not 0 <= at.start < min(at.cache.capacity, at.bias.shape[-1]):
            return False
        return not self._misfit(_beside(x[:, 0]), _beside(at.bias[:, 0]), at.cache.both)

    def _misfit(self, x: Tensor, bias: Tensor, cache: Tensor) -> str:
        """Why the function cannot take these; empty where it can."""
        try:
            self._door.addresses({"x": x, "cache": cache, "bias": bias}, self._sizes)
        except DoesNotFit as error:
            return str(error)
        return ""

    def __call__(self, x: Tensor, at: CachedSteps, codebook: int | None) -> Tensor:
        """Logits ``[R, W, V]`` of one step ``[R, 1, D]``: of one codebook, or of all.

        Raises:
            ValueError: Not what :meth:`takes` takes.
        """
        if not self.takes(x, at):
            found = self._misfit(_beside(x[:, 0]), _beside(at.bias[:, 0]), at.cache.both)
            raise ValueError(found or f"decode_step: not one step of at most {MOST_ROWS} rows within the cache")
        rows, _, width = x.shape
        heads, inner, threads = at.bias.shape[0], self._inner, self._use_threads(torch.get_num_threads())
        first, count = (0, self._codebooks) if codebook is None else (codebook, 1)
        cache, logits = at.cache.both, room(rows, self._codebooks, self._outputs)
        sizes = ((threads, rows, width), *((rows, size) for size in (3 * width, width, 2 * inner, inner)))
        spaces = self._spaces((*sizes, (rows * heads, at.cache.capacity)))
        counters = [np.zeros((self._phases, shares, 8), np.int64) for shares in (threads, 1)]
        self._step(
            x[:, 0].clone(memory_format=torch.contiguous_format).numpy(), *self._weights, self._head_factors,
            (cache.view(torch.uint16) if cache.dtype == torch.bfloat16 else cache).numpy(),
            at.bias[:, 0].contiguous().numpy(), at.start, self._least, first * self._blocks,
            (first + count) * self._blocks, logits.flatten(1).numpy(), *spaces, *counters,
        )  # fmt: skip
        return logits[:, first : first + count, : self._vocabulary]

    def _spaces(self, sizes: tuple[tuple[int, ...], ...]) -> list[NDArray[np.float32]]:
        """Room for what a step computes, used again by the next one of the same sizes in this thread."""
        kept: tuple[Any, list[NDArray[np.float32]]] | None = getattr(self._kept, "spaces", None)
        if kept is None or kept[0] != sizes:
            kept = self._kept.spaces = sizes, [np.empty(size, np.float32) for size in sizes]
        return kept[1]


def _beside(x: Tensor) -> Tensor:
    """The tensor in one piece."""
    return x.contiguous()


def stored(
    pairs: Sequence[tuple[Tensor, Tensor]], precision: PackedPrecision
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
    """Weights ``[layers, out / 4, 4 in]`` as the compiled step reads them; factors and biases ``[layers, out]``."""
    from hafm_lightning.accompanist.step_tiles import tiled

    weights, biases = (torch.stack(parts).float() for parts in zip(*pairs, strict=True))
    factors = torch.ones_like(biases)
    if precision == "int8":
        weights, factors = rounded(weights)
    elif precision == "bf16":
        weights = weights.bfloat16().view(torch.uint16)
    return tiled(weights).numpy(), factors.numpy(), biases.numpy()
