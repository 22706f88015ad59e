"""A network laid out for decoding on a CPU: read faster, in bf16 where the processor multiplies it.

A decoding step multiplies one or two rows by every weight matrix, so its time is that of reading the weights, and of
starting some hundred small operations. Choices, each measured (`benchmarks/generation.py` times whole steps):

* oneDNN's blocked layout, made once when the model is loaded, is read 1.5 times (bf16) to twice (fp32) as fast; gate
  and product of GEGLU happen inside the matrix products;
* the weights of the norms before a projection are multiplied into it, which leaves three operations of a norm's eight;
* int8 weights are read 1.7 times as fast again, for an error of 0.8 % in each product;
* with bf16 or int8 weights everything else stays float32, also the cache, which PyTorch reads three times as fast so;
* a precision means the same weights on every processor: where bf16 is not multiplied (AVX2, Arm), whole sequences take
  bf16's values in float32.

Steps of a few rows of a large network run in one function (:mod:`~hafm_lightning.kernels.cpu.compiled_step`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafm_lightning.kernels.base import Twin, WeightPrecision, swap
from hafm_lightning.kernels.cpu import codegen, processor
from hafm_lightning.kernels.cpu.codegen.doors import DoesNotFit
from hafm_lightning.kernels.cpu.compiled_step import ALIGNMENT, CompiledStep, FoldedLayer, norm_factors, rounded
from hafm_lightning.kernels.cpu.tiled_attention import TiledRelativePosition
from hafm_lightning.modeling.attention import Mixer
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.relative_position import RelativePosition
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import BackboneConfig, Layer, Transformer

EXPECTED_ROWS = 2
"""Rows for which the layout is chosen: one clip with guidance."""
MOST_ROWS_IN_INT8 = 4
"""With more rows at once, multiplying takes longer than reading, and bf16 is faster."""
KERNEL_PARAMETERS = 5_000_000
"""Backbones from this size on take the compiled step; compiling takes longer than a small one saves."""


class PackedTokenModel(Twin, TokenModel):
    """A network with packed weights, for inference alone; :func:`pack` makes one."""

    heads: PackedHeads
    compiled_step: CompiledStep | None

    def head(self, hidden: Tensor, codebook: int) -> Tensor:
        """As :meth:`TokenModel.head`."""
        return self.heads(hidden, codebook)  # type: ignore[no-any-return]

    def cache(self, rows: int, steps: int) -> KeyValueCache:
        """As :meth:`TokenModel.cache`; the compiled step reads bf16 faster."""
        dtype = torch.float32 if self.compiled_step is None else self.compiled_step.cache_dtype(rows)
        return KeyValueCache(self.config.backbone, rows, steps, self.device, dtype)

    def step_logits(self, x: Tensor, at: CachedSteps, codebook: int | None) -> Tensor:
        """As :meth:`TokenModel.step_logits`."""
        if self.compiled_step is not None:
            with suppress(DoesNotFit):
                return self.compiled_step(x, at, codebook)
        hidden = self.backbone(x, at)[:, 0]
        return self.heads(hidden) if codebook is None else self.head(hidden, codebook)[:, None]


def pack(model: TokenModel, precision: WeightPrecision, *, kernel: bool | None = None) -> PackedTokenModel:
    """Replace backbone and output heads, in place, for inference; ``kernel``: compile the step (None: if large)."""
    model.float().requires_grad_(False)
    kernel = steps_can_be_compiled(model, precision) if kernel is None else kernel
    swap(model, {RelativePosition: TiledRelativePosition} if codegen.available() else {})
    layers = [FoldedLayer.of(cast(Layer, layer)) for layer in model.backbone.layers]
    factors = norm_factors(model.backbone.final_norm)
    heads = PackedHeads(model.head_weight, model.head_bias, precision)
    weights = (model.head_weight.detach() * factors, model.head_bias.detach())
    model.__class__ = PackedTokenModel
    packed = cast(PackedTokenModel, model)
    packed.compiled_step = CompiledStep(model.config.backbone, layers, weights, precision) if kernel else None
    packed.backbone = cast(Transformer, PackedTransformer(model.config.backbone, layers, factors, precision))
    packed.heads = heads
    return packed


def steps_can_be_compiled(model: TokenModel, precision: WeightPrecision) -> bool:
    """Whether steps of a few rows are to run in one compiled function: for large networks, which alone try it out."""
    large = sum(parameter.numel() for parameter in model.backbone.parameters()) >= KERNEL_PARAMETERS
    backbone = model.config.backbone
    fits = backbone.width % ALIGNMENT == 0 and backbone.head_width % 16 == 0
    return large and fits and processor.has(f"step {precision}")


class PackedLinear(nn.Module):
    """A linear layer with packed ``weight [out, in]``; float32 ``[..., in]`` -> float32 ``[..., out]``.

    ``int8`` keeps the weights twice: in int8 for a few rows, if the processor has products for them, and in bf16.
    """

    def __init__(self, weight: Tensor, bias: Tensor, precision: WeightPrecision) -> None:
        super().__init__()
        weight, bias = weight.detach().float(), bias.detach().float()
        narrow = precision != "fp32" and processor.multiplies_bf16()
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.bias = (bias if precision == "fp32" else bias.bfloat16()).to(self.dtype)
        dense = (weight if precision == "fp32" else weight.bfloat16()).to(self.dtype)
        self.blocked = narrow or processor.has("packed fp32")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(dense, EXPECTED_ROWS) if self.blocked else dense
        self.rounded: Tensor | None = None
        if precision == "int8" and processor.has("int8 rows bf16" if narrow else "int8 rows fp32"):
            self.rounded, scale = rounded(weight)
            self.scale = scale.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        return self.product(x.to(self.dtype)).float()

    def product(self, x: Tensor, *, gelu: bool = False, factor: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias``, its GELU or its product with a factor, all in the layer's own type."""
        rows = x.numel() // x.shape[-1]
        few = self.rounded is not None and rows <= MOST_ROWS_IN_INT8
        if self.blocked and not few:
            operation = torch.ops.mkldnn._linear_pointwise
            if factor is not None:
                return operation.binary(x, factor, self.weight, self.bias, "mul")  # type: ignore[no-any-return]
            kind, algorithm = ("gelu", "none") if gelu else ("none", "")
            return operation(x, self.weight, self.bias, kind, [], algorithm)  # type: ignore[no-any-return]
        if few:
            y: Tensor = torch.ops.aten._weight_int8pack_mm(x.reshape(rows, -1), self.rounded, self.scale)
            y = y.add_(self.bias).view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.weight, self.bias)
        if gelu:
            return F.gelu(y)
        return y if factor is None else y.mul_(factor)


class PackedHeads(nn.Module):
    """Output heads ``[K, V, D]``, each packed by itself and all of them as one."""

    def __init__(self, weight: Tensor, bias: Tensor, precision: WeightPrecision) -> None:
        super().__init__()
        self.each = nn.ModuleList(PackedLinear(w, b, precision) for w, b in zip(weight, bias, strict=True))
        self.shape = bias.shape
        self.all = self.each[0] if len(bias) == 1 else PackedLinear(weight.flatten(0, 1), bias.flatten(), precision)

    def forward(self, hidden: Tensor, codebook: int | None = None) -> Tensor:
        """Hidden states ``[..., D]`` -> logits ``[..., V]`` of one codebook, or ``[..., K, V]`` of all."""
        if codebook is not None:
            return self.each[codebook](hidden)  # type: ignore[no-any-return]
        return self.all(hidden).unflatten(-1, self.shape)  # type: ignore[no-any-return]


def lengths(x: Tensor, root: Tensor) -> Tensor:
    """``sqrt(|x|^2 + root^2)`` of the last dimension, ``[..., 1]``: what an RMS norm divides by, up to a factor."""
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), root)


class _PackedSteps:
    """:class:`CachedSteps` for packed layers, whose queries already have the scale of the scores."""

    def __init__(self, at: CachedSteps, rows: int) -> None:
        # views of all layers at once: each costs as much as a small operation
        self._at, self._bias = at, at.bias.repeat(rows, 1, 1)  # [B H, Q, N]
        entries = at.cache.entries  # [layers, 2, B, H, capacity, d]
        self._seen = entries[..., : at.visible, :].flatten(2, 3).flatten(0, 1).unbind()  # each [B H, N, d]
        self._step = entries.select(4, at.start).flatten(0, 1).unbind()  # each [B, H, d]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As :class:`~hafm_lightning.modeling.attention.Mixer`."""
        if queries.shape[2] == 1:
            self._step[2 * layer].copy_(keys[:, :, 0])
            self._step[2 * layer + 1].copy_(values[:, :, 0])
        else:
            self._at.cache.write(layer, self._at.start, keys, values)
        keys, values = (part.to(queries.dtype) for part in self._seen[2 * layer : 2 * layer + 2])
        weights = torch.softmax(torch.baddbmm(self._bias, queries.flatten(0, 1), keys.transpose(1, 2)), -1)
        return torch.bmm(weights, values).view(queries.shape)


class PackedLayer(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.Layer` with packed weights."""

    def __init__(self, folded: FoldedLayer, precision: WeightPrecision) -> None:
        super().__init__()
        self.heads = folded.heads
        self.root, self.head_root = (torch.tensor(math.sqrt(value), dtype=torch.float32) for value in folded.epsilons)
        self.project_in = PackedLinear(*folded.project_in, precision)
        self.project_out = PackedLinear(*folded.project_out, precision)
        weights, biases = (part.unflatten(0, (2, -1)) for part in folded.expand)  # type: ignore[no-untyped-call]
        self.value, self.gate = (PackedLinear(*pair, precision) for pair in zip(weights, biases, strict=True))
        self.contract = PackedLinear(*folded.contract, precision)
        self.head_factors, self.step_factors = folded.head_factors[:, None], folded.step_factors[:, None]  # [2, 1, d]

    def forward(self, x: Tensor, layer: int, mixer: Mixer, first: int = 0) -> Tensor:
        """``[B, S, D]`` -> the steps from ``first`` on, ``[B, S - first, D]``."""
        projected = self.project_in(x / lengths(x, self.root)).unflatten(-1, (3, self.heads, -1))
        both = projected[:, :, :2]  # queries and keys, [B, S, 2, H, d]
        factors = self.step_factors if isinstance(mixer, _PackedSteps) else self.head_factors
        both.div_(lengths(both, self.head_root)).mul_(factors)
        mixed = mixer(layer, *projected.permute(2, 0, 3, 1, 4)).transpose(1, 2)[:, first:].flatten(2)
        x = x[:, first:] + self.project_out.product(mixed.to(self.project_out.dtype))
        normed = (x / lengths(x, self.root)).to(self.value.dtype)
        gated = self.value.product(normed, factor=self.gate.product(normed, gelu=True))
        return x + self.contract.product(gated)


class PackedTransformer(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.Transformer` with packed weights."""

    def __init__(
        self, config: BackboneConfig, folded: Sequence[FoldedLayer], final_factors: Tensor, precision: WeightPrecision
    ) -> None:
        super().__init__()
        self.config, self.final_factors = config, final_factors
        self.layers = nn.ModuleList(PackedLayer(layer, precision) for layer in folded)

    def forward(self, x: Tensor, mixer: Mixer, first: int = 0) -> Tensor:
        """As the plain network's."""
        if isinstance(mixer, CachedSteps):
            mixer = _PackedSteps(mixer, len(x))
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, number - 1, mixer, first if number == len(self.layers) else 0)
        return x / lengths(x, cast(PackedLayer, self.layers[0]).root) * self.final_factors
