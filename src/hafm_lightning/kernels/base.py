"""What a backend does for a device, and how modules are exchanged for twins that compute the same, faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import nn

from hafm_lightning.modeling.token_model import TokenModel

WeightPrecision = Literal["fp32", "bf16", "int8"]
"""How the weights of a network are stored for inference."""


class Twin:
    """Marks a class that stands in for the first of its base classes that is no twin."""


def swap(model: nn.Module, twins: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Give each module the class that ``twins`` has for its plain class, and all others their plain class."""
    for module in model.modules():
        plain = cast(type[nn.Module], next(kind for kind in type(module).__mro__ if not issubclass(kind, Twin)))
        module.__class__ = twins.get(plain, plain)


class Backend:
    """Everything that makes one kind of device faster.

    This one leaves the network plain: for devices without kernels of their own, and for ``kernels: none``.
    """

    def for_training(self, model: TokenModel) -> None:
        """Exchange modules of a network, in place, for twins that compute the same; parameters keep their names."""
        swap(model, {})

    def for_inference(self, model: TokenModel, precision: WeightPrecision) -> TokenModel:
        """A network with the same methods for inference alone, laid out for the device; ``model`` is used up."""
        swap(model, {})
        return model.to(torch.bfloat16 if precision == "bf16" else torch.float32)

    def best_precision(self, models: Sequence[TokenModel]) -> WeightPrecision:
        """The fastest precision for networks that work together, of those that cost no quality."""
        return "fp32"

    def precision_note(self, precision: WeightPrecision, models: Sequence[TokenModel]) -> str | None:
        """One line where a precision has no fast operations on this device; None where it has."""
        return None
