"""Separation: a mixture in, vocals and instrumental out, behind one small protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stems:
    """What a separator makes of a mixture: float32 ``[2, L]`` each, which add up to it."""

    vocals: Samples
    instrumental: Samples


class Separator(Protocol):
    """A model that takes vocals out of a mixture.

    Attributes:
        identity: Everything that decides the result (kind, sha256 of the weights, settings), as JSON values.
        rate_hz: Sample rate of mixture and stems.
        margin_s: How much of the surroundings the model wants to see on each side of a stretch, in seconds.
    """

    identity: dict[str, Any]
    rate_hz: int
    margin_s: float

    def separate(self, mixture: Samples) -> Stems:
        """Separate ``[2, L]``."""


@dataclass(frozen=True)
class SeparationSettings:
    """Which model separates songs that come as mixtures only.

    Attributes:
        model: File of an MDX-Net model (``.onnx``); empty means that all corpora come as stems.
    """

    model: str = ""


def load_separator(settings: SeparationSettings) -> Separator:
    """The separator that the settings describe."""
    raise NotImplementedError
