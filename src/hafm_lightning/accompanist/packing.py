"""Linear layers laid out for decoding on a CPU: read faster, in bf16 where the processor multiplies it.

A decoding step multiplies one or two rows by every weight matrix, so its time is that of reading the weights. Choices,
each measured on one thread against ``F.linear`` on two rows (`benchmarks/generation.py` times whole steps):

* oneDNN's blocked layout, made once when the model is loaded, is read 1.5 times (bf16) to twice (fp32) as fast, and is
  no slower for whole windows;
* the paper's inner width of 1365 is padded with zeros to a multiple of :data:`ALIGNMENT`, which changes no result;
* int8 weights (asked for, never by default) are read 1.7 times as fast again, for an error of 0.8 % in each product;
* with bf16 or int8 weights everything else stays float32: the residual stream, the norms, and the cache, which
  PyTorch's attention reads three times as fast in float32 as in bf16 on a CPU.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafm_lightning.modeling.transformer import GEGLU

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


def pack_linears(module: nn.Module, precision: PackedPrecision) -> None:
    """Replace every linear layer inside ``module``, in place, for inference alone.

    Args:
        module: A network with float32 weights on the CPU. It takes and gives float32 afterwards.
        precision: How the weights are kept.
    """
    for name, child in module.named_children():
        if isinstance(child, GEGLU):
            setattr(module, name, PackedGEGLU(child, precision))
        elif isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child.weight, child.bias, precision))
        else:
            pack_linears(child, precision)


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
        x = x.to(self.dtype)
        rows = x.numel() // x.shape[-1]
        if self.rounded is not None and rows <= MOST_ROWS_IN_INT8:
            y = torch.ops.aten._weight_int8pack_mm(x.reshape(rows, -1), self.rounded, self.scale)
            return y.add_(self.bias).view(*x.shape[:-1], -1).float()  # type: ignore[no-any-return]
        y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y.float()  # type: ignore[no-any-return]


class PackedGEGLU(nn.Module):
    """A :class:`~hafm_lightning.modeling.transformer.GEGLU` with packed, padded weights."""

    def __init__(self, source: GEGLU, precision: PackedPrecision) -> None:
        super().__init__()
        inner = source.contract.in_features
        padding = -inner % ALIGNMENT
        weight = F.pad(source.expand.weight.detach().view(2, inner, -1), (0, 0, 0, padding)).flatten(0, 1)
        bias = F.pad(source.expand.bias.detach().view(2, inner), (0, padding)).flatten()
        self.expand = PackedLinear(weight, bias, precision)
        narrow = F.pad(source.contract.weight.detach(), (0, padding))
        self.contract = PackedLinear(narrow, source.contract.bias, precision)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``; the padding is 0 * gelu(0)."""
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.gelu(gate) * value)  # type: ignore[no-any-return]
