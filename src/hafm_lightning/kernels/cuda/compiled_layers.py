"""Transformer layers through ``torch.compile``, for training on CUDA, and a feed-forward of a width that suits it.

A layer is one graph: attention in it is a single operator. Only whole sequences in training are compiled: a decoding
step has new shapes each time, and Dynamo compiles a function at most 8 times.

The paper's inner width, 1365, is odd: rows of float16 then begin at odd places, and matrix products fall to slow
kernels that load two numbers at a time. Zeros that fill it up to a multiple of 8 change no result: ``0 * gelu(0) = 0``,
which meets a column of zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cuda.flex_tiles import build_failure
from hafm_lightning.kernels.cuda.triton_attention import TritonBias, settings
from hafm_lightning.modeling.attention import Mixer, WholeSequence
from hafm_lightning.modeling.transformer import GEGLU, Layer

MULTIPLE = 8
"""Numbers of 16 bits that make up 16 bytes, the widest load."""


def _run_layer(layer: Layer, x: Tensor, mixer: Mixer, first: int) -> Tensor:
    # number 0 for all: whole sequences do not depend on it, and another number would be compiled again
    return Layer.forward(layer, x, 0, mixer, first)


@cache
def _compiled() -> Callable[[Layer, Tensor, Mixer, int], Tensor]:
    """One function for all layers of all networks: a layer's parameters are inputs of the graph."""
    return torch.compile(_run_layer, dynamic=False)


def _traceable(mixer: WholeSequence, x: Tensor, layer: Layer) -> Mixer:
    """The mixer as one operator, where the Triton kernels run; else as it is: the layer is compiled in two parts."""
    if not isinstance(mixer.bias, TritonBias):
        return mixer
    kind, width = x.device.type, layer.attention.query_norm.weight.numel()
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if settings.of(x.device, dtype, width, training=True) is None:
        return mixer
    return WholeSequence(mixer.bias.traceable, mixer.table)


_uncompiled: list[str] = []  # why layers cannot be compiled here, once that is known


class CompiledLayer(Twin, Layer):
    """A layer that is compiled where a whole sequence trains; where it cannot be, one warning says so."""

    def forward(self, x: Tensor, layer: int, mixer: Mixer, first: int = 0) -> Tensor:
        """As :meth:`Layer.forward`."""
        if self.training and torch.is_grad_enabled() and isinstance(mixer, WholeSequence) and not _uncompiled:
            try:
                return _compiled()(self, x, _traceable(mixer, x, self), first)
            except Exception as error:
                reason = build_failure(error)
                if reason is None:
                    raise
                _uncompiled.append(reason)
                warnings.warn(f"layers cannot be compiled here, training is slower by a sixth ({reason})", stacklevel=2)
        return super().forward(x, layer, mixer, first)


class FilledGEGLU(Twin, GEGLU):
    """A feed-forward whose matrices are filled up with zeros as they are used; parameters keep their shapes.

    Values and gates come from two products: one kernel then computes the gradients of both.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`GEGLU.forward`."""
        missing = -self.contract.in_features % MULTIPLE
        value, gate = (
            F.linear(x, F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing)))
            for weight, bias in zip(self.expand.weight.chunk(2), self.expand.bias.chunk(2), strict=True)
        )
        return F.linear(F.gelu(gate) * value, F.pad(self.contract.weight, (0, missing)), self.contract.bias)
