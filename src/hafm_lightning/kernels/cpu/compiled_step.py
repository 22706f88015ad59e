"""A decoding step of one or two clips, from input vector to logits, as one compiled function with the weights it reads.

:mod:`~hafm_lightning.kernels.cpu.step_kernel` holds the function, this module its arguments, and the form of the
weights that decoding on a CPU starts from (:class:`FoldedLayer`). Choices:

* with bf16 or int8 weights keys and values are kept in bf16: late steps read more of them than of weights;
* one step is made when the network is laid out, so that compiling does not fall into the first take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.kernels.base import WeightPrecision
from hafm_lightning.kernels.cpu.codegen.doors import Buffer, DoesNotFit, Door, room
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.transformer import BackboneConfig, Layer, RMSNorm

ALIGNMENT = 32
"""Widths are padded to a multiple of this."""
MOST_ROWS = 4
"""Steps of more rows multiply matrices, which oneDNN does better."""
BF16_CACHE_ALIGNMENT = 32
"""Head widths that are no multiple of this keep their cache in float32."""


@dataclass(frozen=True)
class FoldedLayer:
    """A layer's weights with the norms before its projections multiplied in, and GEGLU's width padded; float32."""

    project_in: tuple[Tensor, Tensor]  # weight [3 D, D] and bias
    project_out: tuple[Tensor, Tensor]  # [D, D]
    expand: tuple[Tensor, Tensor]  # [2 I, D], values before gates
    contract: tuple[Tensor, Tensor]  # [D, I]; the padding is 0 * gelu(0)
    head_factors: Tensor  # of normalised queries and keys, [2, d]
    heads: int
    epsilons: tuple[float, ...]  # width * epsilon of the norms over the width and over a head

    @classmethod
    def of(cls, layer: Layer) -> FoldedLayer:
        """The weights of a layer."""
        attention, feedforward = layer.attention, layer.feedforward
        padding = -feedforward.contract.in_features % ALIGNMENT
        (w_in, b_in), project_out, (w_expand, b_expand), (w_contract, b_contract) = (
            (linear.weight.detach(), linear.bias.detach())
            for linear in (attention.project_in, attention.project_out, feedforward.expand, feedforward.contract)
        )
        expand = (w_expand * norm_factors(layer.feedforward_norm)).view(2, -1, w_expand.shape[1])
        return cls(
            project_in=(w_in * norm_factors(layer.attention_norm), b_in),
            project_out=project_out,
            expand=(
                F.pad(expand, (0, 0, 0, padding)).flatten(0, 1),
                F.pad(b_expand.view(2, -1), (0, padding)).flatten(),
            ),
            contract=(F.pad(w_contract, (0, padding)), b_contract),
            head_factors=torch.stack([norm_factors(attention.query_norm), norm_factors(attention.key_norm)]),
            heads=attention.heads,
            epsilons=tuple(n.weight.shape[-1] * n.epsilon for n in (layer.attention_norm, attention.query_norm)),
        )

    @property
    def step_factors(self) -> Tensor:
        """:attr:`head_factors` with the scale of the scores in the queries'."""
        scale = 1 / math.sqrt(self.head_factors.shape[-1])
        return self.head_factors * torch.tensor([[scale], [1.0]], dtype=torch.float32)


def norm_factors(norm: RMSNorm) -> Tensor:
    """What an RMS norm multiplies ``x / sqrt(|x|^2 + width * epsilon)`` by, ``[width]``."""
    return norm.weight.detach() * math.sqrt(norm.weight.shape[-1])


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[..., out, in]`` in int8, 255 levels for each output, and the size of a level ``[..., out]``."""
    scale = weight.abs().amax(dim=-1).clamp(min=1e-12) / 127
    return (weight / scale[..., None]).round().to(torch.int8), scale


class CompiledStep:
    """The compiled step of one network; ``heads``: weights ``[K, V, D]``, times the final norm's, and biases."""

    def __init__(
        self, config: BackboneConfig, layers: Sequence[FoldedLayer], heads: tuple[Tensor, Tensor],
        precision: WeightPrecision,
    ) -> None:  # fmt: skip
        import numba

        from hafm_lightning.kernels.cpu import step_kernel

        self._set_threads: Any = numba.set_num_threads
        self._most_threads: int = cast(Any, numba.config).NUMBA_NUM_THREADS
        # Numba's pool sets OpenMP's number of threads, PyTorch's too, when it starts: PyTorch's is given back.
        threads = torch.get_num_threads()
        self._set_threads(min(threads, self._most_threads))
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        self._step: Any = step_kernel.decode_step
        self._phases, block = step_kernel.PHASES * len(layers) + 1, step_kernel.OUTPUTS_AT_ONCE
        self._weights = [
            stored([getattr(layer, name) for layer in layers], precision)
            for name in ("project_in", "project_out", "expand", "contract")
        ]
        weight, bias = heads
        self._codebooks, self._vocabulary, _ = weight.shape
        padding = -self._vocabulary % block
        weight, bias = F.pad(weight, (0, 0, 0, padding)), F.pad(bias, (0, padding))
        self._outputs, self._blocks = bias.shape[1], bias.shape[1] // block
        self._weights.append(stored([(weight.flatten(0, 1), bias.flatten())], precision))
        self._head_factors = torch.stack([layer.step_factors for layer in layers]).numpy()
        self._inner = layers[0].contract[0].shape[1]
        self._epsilons = np.array(layers[0].epsilons, np.float32)
        narrow = precision != "fp32" and config.head_width % BF16_CACHE_ALIGNMENT == 0
        self._cache_dtype = torch.bfloat16 if narrow else torch.float32
        cache_shape = (config.layers, 2, "rows", config.heads, "capacity", config.head_width)
        buffers = {
            "x": Buffer(torch.float32, ("rows", config.width)),
            "cache": Buffer(self._cache_dtype, cache_shape, written=True),
            "bias": Buffer(torch.float32, (config.heads, "visible")),
        }
        self._door = Door("decode_step", buffers)
        empty = KeyValueCache(config, 1, 1, "cpu", self._cache_dtype)
        x, bias = room(1, 1, config.width, zero=True), room(config.heads, 1, 1, zero=True)
        self(x, CachedSteps(empty, 0, bias), None)

    def cache_dtype(self, rows: int) -> torch.dtype:
        """Type of the cache for this number of rows."""
        return self._cache_dtype if rows <= MOST_ROWS else torch.float32

    def __call__(self, x: Tensor, at: CachedSteps, codebook: int | None) -> Tensor:
        """Logits ``[R, W, V]`` of one step ``[R, 1, D]``: of one codebook, or of all; DoesNotFit for other inputs."""
        few = x.dim() == 3 and x.shape[1] == 1 and len(x) <= MOST_ROWS
        if not few or not isinstance(at.start, int) or not 0 <= at.start < min(at.cache.capacity, at.visible):
            raise DoesNotFit(f"decode_step: not one step of at most {MOST_ROWS} rows within the cache")
        tensors = {"x": x[:, 0].contiguous(), "cache": at.cache.entries, "bias": at.bias[:, 0].contiguous()}
        self._door.addresses(tensors)
        rows, _, width = x.shape
        heads, inner, threads = at.bias.shape[0], self._inner, min(torch.get_num_threads(), self._most_threads)
        self._set_threads(threads)
        first, count = (0, self._codebooks) if codebook is None else (codebook, 1)
        cache, logits = at.cache.entries, room(rows, self._codebooks, self._outputs)
        sizes = (rows, 3 * width), (rows, width), (rows, 2 * inner), (rows, inner), (rows * heads, at.cache.capacity)
        spaces = tuple(np.empty(size, np.float32) for size in ((threads, rows, width), *sizes))
        counters = (np.zeros((self._phases, shares, 8), np.int64) for shares in (threads, 1))
        self._step(
            tensors["x"].clone().numpy(), *self._weights, self._head_factors,
            (cache.view(torch.uint16) if cache.dtype == torch.bfloat16 else cache).numpy(), tensors["bias"].numpy(),
            at.start, self._epsilons, (first * self._blocks, (first + count) * self._blocks),
            logits.flatten(1).numpy(), spaces, *counters,
        )  # fmt: skip
        return logits[:, first : first + count, : self._vocabulary]


def stored(
    pairs: Sequence[tuple[Tensor, Tensor]], precision: WeightPrecision
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
    """Weights ``[layers, out / 4, 4 in]`` as the compiled step reads them; factors and biases ``[layers, out]``."""
    from hafm_lightning.kernels.cpu.step_tiles import tiled

    weights, biases = (torch.stack(parts).float() for parts in zip(*pairs, strict=True))
    factors = torch.ones_like(biases)
    if precision == "int8":
        weights, factors = rounded(weights)
    elif precision == "bf16":
        weights = weights.bfloat16().view(torch.uint16)
    return tiled(weights).numpy(), factors.numpy(), biases.numpy()
