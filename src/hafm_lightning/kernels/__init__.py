"""Everything that only makes a device faster, behind two functions: :func:`for_training` and :func:`for_inference`.

``modeling`` is a plain Transformer that runs anywhere. A :class:`~hafm_lightning.kernels.base.Backend` exchanges its
modules for twins that compute the same on one kind of device. ``cuda`` and ``cpu`` are the two backends.
"""

from __future__ import annotations

from typing import Literal

import torch

from hafm_lightning.kernels.base import Backend, WeightPrecision
from hafm_lightning.kernels.cpu import CpuBackend
from hafm_lightning.modeling.token_model import TokenModel

__all__ = ["BACKENDS", "Kernels", "backend_for", "for_inference", "for_training"]

Kernels = Literal["auto", "none"]
"""``auto``: the kernels of the device that a network is on; ``none``: PyTorch's operations."""

BACKENDS: dict[str, Backend] = {"cpu": CpuBackend()}
"""By type of device; others run the plain network. ``cuda`` joins when it is first asked for."""


def backend_for(device: torch.device, kernels: Kernels = "auto") -> Backend:
    """The backend of a device."""
    if kernels == "none":
        return Backend()
    if device.type == "cuda" and "cuda" not in BACKENDS:
        from hafm_lightning.kernels.cuda import CudaBackend  # brings torch.compile, which takes seconds to import

        BACKENDS["cuda"] = CudaBackend()
    return BACKENDS.get(device.type, Backend())


def for_training(model: TokenModel, kernels: Kernels = "auto") -> None:
    """As :meth:`Backend.for_training`, for the device that the network is on; call it again after a move."""
    backend_for(model.device, kernels).for_training(model)


def for_inference(model: TokenModel, device: torch.device, precision: WeightPrecision) -> TokenModel:
    """As :meth:`Backend.for_inference`, on ``device``; ``model`` is in eval mode with float32 weights."""
    return backend_for(device).for_inference(model.to(device), precision)
