"""A network laid out for decoding on a CPU: read faster, in bf16 where the processor multiplies it.

A decoding step multiplies one or two rows by every weight matrix, so its time is that of reading the weights, and of
starting some hundred small operations. Choices, each measured (`benchmarks/generation.py` times whole steps):

* oneDNN's blocked layout, made once when the model is loaded, is read 1.5 times (bf16) to twice (fp32) as fast, and is
  no slower for whole windows; gate and product of GEGLU happen inside the matrix products;
* the weights of the norms before a projection are multiplied into it, which leaves three operations of a norm's eight;
* the paper's inner width of 1365 is padded with zeros to a multiple of :data:`ALIGNMENT`, which changes no result;
* int8 weights (asked for, never by default) are read 1.7 times as fast again, for an error of 0.8 % in each product;
* with bf16 or int8 weights everything else stays float32: the residual stream, the norms, and the cache, which
  PyTorch's attention reads three times as fast in float32 as in bf16 on a CPU.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafm_lightning.modeling.attention import Geometry, attend
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import GEGLU, CachedSteps, KeyValueCache, Layer, RMSNorm, Transformer

ALIGNMENT = 32
"""Widths are padded to a multiple of this."""
EXPECTED_ROWS = 2
"""Rows for which the layout is chosen: one clip with guidance."""
MOST_ROWS_IN_INT8 = 4
"""With more rows at once, multiplying takes longer than reading, and bf16 is faster."""

PackedPrecision = Literal["fp32", "bf16", "int8"]


def can_pack() -> bool:
    """Whether this PyTorch has the packed linear layers of oneDNN (x86 builds have)."""
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def pack(model: TokenModel, precision: PackedPrecision) -> None:
    """Replace a network's backbone and output heads, in place, for inference alone.

    Args:
        model: A network with float32 weights on the CPU. It takes and gives float32 afterwards.
        precision: How the weights are kept.
    """
    model.requires_grad_(False)
    model.backbone = cast(Transformer, PackedTransformer(model.backbone, precision))
    model.packed_heads = PackedHeads(model.head_weight, model.head_bias, precision)


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed; float32 ``[..., in]`` -> float32 ``[..., out]``.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``.
        precision: How the weights are kept; ``int8`` rounds each output's weights to 255 levels of their own.
    """

    def __init__(self, weight: Tensor, bias: Tensor, precision: PackedPrecision) -> None:
        super().__init__()
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        weight, self.bias = weight.detach(), bias.detach().to(self.dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype), EXPECTED_ROWS)
        self.rounded: Tensor | None = None
        if precision == "int8":
            scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
            self.rounded, self.scale = (weight / scale[:, None]).round().to(torch.int8), scale.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        return self.product(x.to(self.dtype)).float()

    def product(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """``activation(x @ weight.T + bias)`` in the layer's own type, which ``x`` must have."""
        rows = x.numel() // x.shape[-1]
        if self.rounded is not None and rows <= MOST_ROWS_IN_INT8:
            y = torch.ops.aten._weight_int8pack_mm(x.reshape(rows, -1), self.rounded, self.scale)
            y = y.add_(self.bias).view(*x.shape[:-1], -1)
            return F.gelu(y) if activation == "gelu" else y  # type: ignore[no-any-return]
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self.packed, self.bias, activation, [], "none" if activation == "gelu" else ""
        )

    def product_times(self, x: Tensor, factor: Tensor) -> Tensor:
        """``(x @ weight.T + bias) * factor`` in the layer's own type, which both must have."""
        if self.rounded is not None and x.numel() // x.shape[-1] <= MOST_ROWS_IN_INT8:
            return self.product(x).mul_(factor)
        return torch.ops.mkldnn._linear_pointwise.binary(  # type: ignore[no-any-return]
            x, factor, self.packed, self.bias, "mul"
        )


class PackedGEGLU(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.GEGLU` with packed, padded weights.

    Args:
        source: The layer.
        precision: How the weights are kept.
        scale: Factors ``[D]`` on the input, multiplied into the weights.
    """

    def __init__(self, source: GEGLU, precision: PackedPrecision, scale: Tensor) -> None:
        super().__init__()
        inner = source.contract.in_features
        padding = -inner % ALIGNMENT
        weights = (source.expand.weight.detach() * scale).view(2, inner, -1)
        biases = source.expand.bias.detach().view(2, inner)
        self.value, self.gate = (
            PackedLinear(F.pad(weight, (0, 0, 0, padding)), F.pad(bias, (0, padding)), precision)
            for weight, bias in zip(weights, biases, strict=True)
        )
        narrow = F.pad(source.contract.weight.detach(), (0, padding))
        self.contract = PackedLinear(narrow, source.contract.bias, precision)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 ``[..., D]`` -> ``[..., D]`` in the layers' own type; the padding is 0 * gelu(0)."""
        x = x.to(self.value.dtype)
        return self.contract.product(self.value.product_times(x, self.gate.product(x, "gelu")))


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


class PackedNorm:
    """An RMS norm without its weight and the root of its width, which whatever follows must multiply by."""

    def __init__(self, norm: RMSNorm) -> None:
        width = norm.weight.shape[-1]
        self.factors = norm.weight.detach() * math.sqrt(width)
        self._least = torch.tensor(math.sqrt(width * norm.epsilon))

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> ``x / rms(x) / sqrt(width)``."""
        return x / self.lengths(x)

    def lengths(self, x: Tensor) -> Tensor:
        """What ``x`` must be divided by, ``[..., 1]``."""
        return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._least)


class PackedLayer(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.Layer` with packed weights."""

    def __init__(self, source: Layer, precision: PackedPrecision) -> None:
        super().__init__()
        attention = source.attention
        self.heads = attention.heads
        self.norm, self.feedforward_norm = PackedNorm(source.attention_norm), PackedNorm(source.feedforward_norm)
        project_in = attention.project_in
        self.project_in = PackedLinear(project_in.weight * self.norm.factors, project_in.bias, precision)
        self.project_out = PackedLinear(attention.project_out.weight, attention.project_out.bias, precision)
        self.feedforward = PackedGEGLU(source.feedforward, precision, self.feedforward_norm.factors)
        self.head_norm = PackedNorm(attention.query_norm)
        factors = (self.head_norm.factors, PackedNorm(attention.key_norm).factors)
        self.head_factors = torch.stack(factors)[:, None]  # [2, 1, d], of queries and keys
        scale = 1 / math.sqrt(self.head_factors.shape[-1])
        self.step_factors = self.head_factors * torch.tensor([scale, 1.0])[:, None, None]

    def _split(self, x: Tensor, factors: Tensor) -> Tensor:
        """Of ``x [B, S, D]``: queries, keys and values ``[B, S, 3, H, d]``, the first two normed, times ``factors``."""
        projected = self.project_in(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        both = projected[:, :, :2]
        both.div_(self.head_norm.lengths(both)).mul_(factors)
        return projected

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, from what attention mixed ``[B, S, D]``."""
        x = x + self.project_out.product(mixed.to(self.project_out.dtype))
        return x + self.feedforward(self.feedforward_norm(x))  # type: ignore[no-any-return]

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
        """One new step ``[B, 1, D]`` -> ``[B, 1, D]``; ``bias [B H, 1, visible]``."""
        projected = self._split(x, self.step_factors)[:, 0]  # [B, 3, H, d]
        at.cache.write_step(layer, at.start, projected[:, 1:].transpose(0, 1))
        keys, values = at.cache.heads(layer, at.visible)  # [B H, visible, d]
        queries = projected[:, :1].reshape(len(bias), 1, -1)
        weights = torch.softmax(torch.baddbmm(bias, queries, keys.transpose(1, 2)), -1)
        return self._finish(x, torch.bmm(weights, values).view(x.shape))


class PackedTransformer(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.Transformer` with packed weights; for one step at a time."""

    def __init__(self, source: Transformer, precision: PackedPrecision) -> None:
        super().__init__()
        self.config = source.config
        self.layers = nn.ModuleList(PackedLayer(cast(Layer, layer), precision) for layer in source.layers)
        self.final_norm = PackedNorm(source.final_norm)

    def forward(self, x: Tensor, table: Tensor, geometry: Geometry, first: int = 0) -> Tensor:
        """As the plain network's."""
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, table, geometry, first if number == len(self.layers) else 0)
        return self.final_norm(x) * self.final_norm.factors

    def prefill(self, x: Tensor, table: Tensor, geometry: Geometry, cache: KeyValueCache) -> Tensor:
        """As the plain network's."""
        for number, layer in enumerate(self.layers):
            x = cast(PackedLayer, layer).prefill(x, number, table, geometry, cache)
        return self.final_norm(x) * self.final_norm.factors

    def cached(self, x: Tensor, at: CachedSteps) -> Tensor:
        """As the plain network's, for one step: ``[B, 1, D]`` -> ``[B, 1, D]``."""
        if x.shape[1] != 1:
            raise ValueError(f"a packed network decodes one step at a time, got {x.shape[1]}")
        bias = at.bias.repeat(x.shape[0], 1, 1)  # [B H, 1, visible]
        for number, layer in enumerate(self.layers):
            x = cast(PackedLayer, layer).cached(x, number, at, bias)
        return self.final_norm(x) * self.final_norm.factors
