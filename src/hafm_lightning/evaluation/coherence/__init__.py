"""How well an accompaniment fits a vocal: harmony, rhythm, and all scores of a clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import Samples, resample

__all__ = ["ANALYSIS_RATE_HZ", "at_analysis_rate"]

ANALYSIS_RATE_HZ = 22050


def at_analysis_rate(audio: npt.NDArray[Any], rate_hz: int) -> Samples:
    """A mono signal ``[L]`` at 22050 Hz; ValueError unless it is a flat array of finite numbers."""
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise ValueError(f"expected finite mono samples [L], got shape {audio.shape}")
    return resample(audio, rate_hz, ANALYSIS_RATE_HZ)
