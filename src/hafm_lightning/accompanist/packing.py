"""A network laid out for decoding on a CPU: read faster, in bf16 where the processor multiplies it.

What the processor has is asked of :mod:`~hafm_lightning.accompanist.processor`; a precision means the same weights on
all of them. Where bf16 is not multiplied (AVX2, Arm), whole sequences take bf16's values in float32: they cost the
time and memory of fp32 there, and a network's steps and whole passes still agree with those of every other machine.
Where there is no oneDNN (Arm), they go through ``F.linear``.

A decoding step multiplies one or two rows by every weight matrix, so its time is that of reading the weights, and of
starting some hundred small operations. Choices, each measured (`benchmarks/generation.py` times whole steps):

* oneDNN's blocked layout, made once when the model is loaded, is read 1.5 times (bf16) to twice (fp32) as fast, and is
  no slower for whole windows; gate and product of GEGLU happen inside the matrix products;
* the weights of the norms before a projection are multiplied into it, which leaves three operations of a norm's eight;
* the paper's inner width of 1365 is padded with zeros to a multiple of :data:`ALIGNMENT`, which changes no result;
* int8 weights are read 1.7 times as fast again, for an error of 0.8 % in each product;
* with bf16 or int8 weights everything else stays float32: the residual stream, the norms, and the cache, which
  PyTorch's attention reads three times as fast in float32 as in bf16 on a CPU. Steps of a few rows of a large network
  run in one compiled function (:mod:`~hafm_lightning.accompanist.compiled_step`), which keeps a bf16 cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafm_lightning.accompanist import processor
from hafm_lightning.accompanist.compiled_step import CompiledStep
from hafm_lightning.accompanist.plain_weights import (
    ALIGNMENT,
    PackedPrecision,
    PlainLayer,
    norm_factors,
    rounded,
)
from hafm_lightning.modeling.attention import Geometry, attend
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import BackboneConfig, CachedSteps, KeyValueCache, Layer, Transformer

EXPECTED_ROWS = 2
"""Rows for which the layout is chosen: one clip with guidance."""
MOST_ROWS_IN_INT8 = 4
"""With more rows at once, multiplying takes longer than reading, and bf16 is faster."""

KERNEL_PARAMETERS = 5_000_000
"""Backbones from this size on take the compiled step; compiling takes longer than a small one saves."""


def pack(model: TokenModel, precision: PackedPrecision, *, kernel: bool | None = None) -> None:
    """Replace a network's backbone and output heads, in place, for inference alone.

    Args:
        model: A network with float32 weights on the CPU. It takes and gives float32 afterwards.
        precision: How the weights are kept.
        kernel: Whether steps of a few rows run in one compiled function; None: for large networks.
    """
    model.float().requires_grad_(False)
    kernel = steps_can_be_compiled(model, precision) if kernel is None else kernel
    plain = [PlainLayer.of(cast(Layer, layer)) for layer in model.backbone.layers]
    factors = norm_factors(model.backbone.final_norm)
    if kernel:
        heads = (model.head_weight.detach() * factors, model.head_bias.detach())
        model.compiled_step = CompiledStep(model.config.backbone, plain, heads, precision)
    model.backbone = cast(Transformer, PackedTransformer(model.config.backbone, plain, factors, precision))
    model.packed_heads = PackedHeads(model.head_weight, model.head_bias, precision)


def steps_can_be_compiled(model: TokenModel, precision: PackedPrecision) -> bool:
    """Whether steps of a few rows are to run in one compiled function: it pays for large networks.

    Only for these is the function tried out, which may compile it.
    """
    large = sum(parameter.numel() for parameter in model.backbone.parameters()) >= KERNEL_PARAMETERS
    backbone = model.config.backbone
    fits = backbone.width % ALIGNMENT == 0 and backbone.head_width % 16 == 0
    steps: dict[PackedPrecision, processor.Operation] = {"fp32": "step fp32", "bf16": "step bf16", "int8": "step int8"}
    return large and fits and processor.has(steps[precision])


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed; float32 ``[..., in]`` -> float32 ``[..., out]``.

    ``int8`` keeps the weights twice: in int8 for a few rows, where the processor has products for them, and in bf16 for
    more. Without such products the few rows take the latter too.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``.
        precision: How the weights are kept; ``int8`` rounds each output's weights to 255 levels of their own.
    """

    def __init__(self, weight: Tensor, bias: Tensor, precision: PackedPrecision) -> None:
        super().__init__()
        weight, bias = weight.detach().float(), bias.detach().float()
        narrow = precision != "fp32" and processor.multiplies_bf16()
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.bias = (bias if precision == "fp32" else bias.bfloat16()).to(self.dtype)
        dense = (weight if precision == "fp32" else weight.bfloat16()).to(self.dtype)
        self.packed: Tensor | None = None
        self.plain: Tensor | None = None
        if narrow or processor.has("packed fp32"):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(dense, EXPECTED_ROWS)
        else:
            self.plain = dense
        self.rounded: Tensor | None = None
        if precision == "int8" and processor.has("int8 rows bf16" if narrow else "int8 rows fp32"):
            self.rounded, scale = rounded(weight)
            self.scale = scale.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        return self.product(x.to(self.dtype)).float()

    def product(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """``activation(x @ weight.T + bias)`` in the layer's own type, which ``x`` must have."""
        rows = x.numel() // x.shape[-1]
        if self.rounded is not None and rows <= MOST_ROWS_IN_INT8:
            y = torch.ops.aten._weight_int8pack_mm(x.reshape(rows, -1), self.rounded, self.scale)
            y = y.add_(self.bias).view(*x.shape[:-1], -1)
            return F.gelu(y) if activation == "gelu" else y
        if self.plain is not None:
            y = F.linear(x, self.plain, self.bias)
            return F.gelu(y) if activation == "gelu" else y
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self.packed, self.bias, activation, [], "none" if activation == "gelu" else ""
        )

    def product_times(self, x: Tensor, factor: Tensor) -> Tensor:
        """``(x @ weight.T + bias) * factor`` in the layer's own type, which both must have."""
        few = self.rounded is not None and x.numel() // x.shape[-1] <= MOST_ROWS_IN_INT8
        if few or self.plain is not None:
            return self.product(x).mul_(factor)
        return torch.ops.mkldnn._linear_pointwise.binary(  # type: ignore[no-any-return]
            x, factor, self.packed, self.bias, "mul"
        )


class PackedHeads(nn.Module):
    """Output heads ``[K, V, D]``, each packed by itself and all of them as one."""

    def __init__(self, weight: Tensor, bias: Tensor, precision: PackedPrecision) -> None:
        super().__init__()
        self.each = nn.ModuleList(PackedLinear(w, b, precision) for w, b in zip(weight, bias, strict=True))
        self.shape = bias.shape
        self.all = self.each[0] if len(bias) == 1 else PackedLinear(weight.flatten(0, 1), bias.flatten(), precision)

    def forward(self, hidden: Tensor, codebook: int | None = None) -> Tensor:
        """Hidden states ``[..., D]`` -> logits ``[..., V]`` of one codebook, or ``[..., K, V]`` of all."""
        if codebook is not None:
            return self.each[codebook](hidden)  # type: ignore[no-any-return]
        return self.all(hidden).unflatten(-1, self.shape)  # type: ignore[no-any-return]


def lengths(x: Tensor, least: Tensor) -> Tensor:
    """``sqrt(|x|^2 + least^2)`` of the last dimension, ``[..., 1]``: what an RMS norm divides by, up to a factor."""
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)


class PackedLayer(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.Layer` with packed weights."""

    def __init__(self, plain: PlainLayer, precision: PackedPrecision) -> None:
        super().__init__()
        self.heads = plain.heads
        self.least, self.head_least = (torch.tensor(math.sqrt(value), dtype=torch.float32) for value in plain.least)
        self.project_in = PackedLinear(*plain.project_in, precision)
        self.project_out = PackedLinear(*plain.project_out, precision)
        weights, biases = (part.unflatten(0, (2, -1)) for part in plain.expand)  # type: ignore[no-untyped-call]
        self.value, self.gate = (PackedLinear(*pair, precision) for pair in zip(weights, biases, strict=True))
        self.contract = PackedLinear(*plain.contract, precision)
        self.head_factors, self.step_factors = plain.head_factors[:, None], plain.step_factors[:, None]  # [2, 1, d]

    def _split(self, x: Tensor, factors: Tensor) -> Tensor:
        """Of ``x [B, S, D]``: queries, keys and values ``[B, S, 3, H, d]``, the first two normed, times ``factors``."""
        projected = self.project_in(x / lengths(x, self.least)).unflatten(-1, (3, self.heads, -1))
        both = projected[:, :, :2]
        both.div_(lengths(both, self.head_least)).mul_(factors)
        return projected  # type: ignore[no-any-return]

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, from what attention mixed ``[B, S, D]``."""
        x = x + self.project_out.product(mixed.to(self.project_out.dtype))
        normed = (x / lengths(x, self.least)).to(self.value.dtype)
        return x + self.contract.product(self.value.product_times(normed, self.gate.product(normed, "gelu")))

    def forward(self, x: Tensor, table: Tensor, geometry: Geometry, first: int = 0) -> Tensor:
        """``[B, S, D]`` -> the steps from ``first`` on, ``[B, S - first, D]``."""
        queries, keys, values = self._split(x, self.head_factors).permute(2, 0, 3, 1, 4)
        mixed = attend(queries, keys, values, table, geometry).transpose(1, 2)[:, first:]
        return self._finish(x[:, first:], mixed.flatten(2))

    def prefill(self, x: Tensor, layer: int, table: Tensor, geometry: Geometry, cache: KeyValueCache) -> Tensor:
        """As :meth:`forward`, filling the cache."""
        queries, keys, values = self._split(x, self.head_factors).permute(2, 0, 3, 1, 4)
        cache.write(layer, 0, keys, values)
        return self._finish(x, attend(queries, keys, values, table, geometry).transpose(1, 2).flatten(2))

    def cached(self, x: Tensor, layer: int, at: CachedSteps, bias: Tensor) -> Tensor:
        """New steps ``[B, Q, D]`` -> ``[B, Q, D]``; ``bias [B H, Q, visible]``."""
        queries, keys, values = self._split(x, self.step_factors).permute(2, 0, 3, 1, 4)  # each [B, H, Q, d]
        kept = at.cache.both.dtype
        if x.shape[1] == 1:
            at.cache.write_step(layer, at.start, torch.stack((keys[:, :, 0], values[:, :, 0])).to(kept))
        else:
            at.cache.write(layer, at.start, keys.to(kept), values.to(kept))
        keys, values = (part.to(x.dtype) for part in at.cache.heads(layer, at.visible))  # [B H, visible, d]
        weights = torch.softmax(torch.baddbmm(bias, queries.flatten(0, 1), keys.transpose(1, 2)), -1)
        mixed = torch.bmm(weights, values).view(queries.shape).transpose(1, 2)  # [B, Q, H, d]
        return self._finish(x, mixed.flatten(2))


class PackedTransformer(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.Transformer` with packed weights."""

    def __init__(
        self, config: BackboneConfig, plain: Sequence[PlainLayer], final_factors: Tensor, precision: PackedPrecision
    ) -> None:
        super().__init__()
        self.config, self.final_factors = config, final_factors
        self.layers = nn.ModuleList(PackedLayer(layer, precision) for layer in plain)

    def forward(self, x: Tensor, table: Tensor, geometry: Geometry, first: int = 0) -> Tensor:
        """As the plain network's."""
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, table, geometry, first if number == len(self.layers) else 0)
        return self._norm(x)

    def prefill(self, x: Tensor, table: Tensor, geometry: Geometry, cache: KeyValueCache) -> Tensor:
        """As the plain network's."""
        for number, layer in enumerate(self.layers):
            x = cast(PackedLayer, layer).prefill(x, number, table, geometry, cache)
        return self._norm(x)

    def cached(self, x: Tensor, at: CachedSteps) -> Tensor:
        """As the plain network's: ``[B, Q, D]`` -> ``[B, Q, D]``."""
        bias = at.bias.repeat(x.shape[0], 1, 1)  # [B H, Q, visible]
        for number, layer in enumerate(self.layers):
            x = cast(PackedLayer, layer).cached(x, number, at, bias)
        return self._norm(x)

    def _norm(self, x: Tensor) -> Tensor:
        return x / lengths(x, cast(PackedLayer, self.layers[0]).least) * self.final_factors
