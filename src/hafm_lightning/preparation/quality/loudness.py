"""Loudness of a clip after ITU-R BS.1770-4 and its range after EBU Tech 3342, from one pass of K-weighting.

:func:`hafm_lightning.audio.loudness_lufs` measures whole files; the quality filter needs integrated loudness and range
of many clips, and both come from the same energies of 100 ms.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Energies = npt.NDArray[np.float64]

_STEP_S = 0.1
_OFFSET_DB = -0.691
_ABSOLUTE_GATE_LUFS = -70.0


def loudness_and_range(samples: Samples, rate_hz: int) -> tuple[float, float]:
    """Integrated loudness in LUFS (``-inf`` for silence) and loudness range in LU of ``[C, L]``, ``C`` 1 or 2."""
    from scipy.signal import sosfilt

    step = round(_STEP_S * rate_hz)
    steps = samples.shape[1] // step
    if steps < 1:
        return -math.inf, 0.0
    weighted = sosfilt(_k_weighting(rate_hz), samples[:, : steps * step], axis=1)
    energies = np.square(weighted.reshape(len(samples), steps, step)).mean(axis=2).sum(axis=0)
    integrated = _gated_mean(_moving_mean(energies, 4), relative_db=-10.0)
    short_term = _moving_mean(energies, 30)
    loud = short_term[short_term > _energy(_ABSOLUTE_GATE_LUFS)]
    if not len(loud):
        return integrated, 0.0
    loud = loud[loud > loud.mean() * 10 ** (-20 / 10)]
    low, high = np.percentile(10 * np.log10(loud), (10, 95))
    return integrated, float(high - low)


def _gated_mean(blocks: Energies, relative_db: float) -> float:
    loud = blocks[blocks > _energy(_ABSOLUTE_GATE_LUFS)]
    if not len(loud):
        return -math.inf
    loud = loud[loud > loud.mean() * 10 ** (relative_db / 10)]
    return float(_OFFSET_DB + 10 * math.log10(loud.mean()))


def _moving_mean(energies: Energies, width: int) -> Energies:
    width = min(width, len(energies))
    return np.convolve(energies, np.full(width, 1 / width), mode="valid")


def _energy(lufs: float) -> float:
    return float(10 ** ((lufs - _OFFSET_DB) / 10))


@functools.lru_cache(maxsize=16)
def _k_weighting(rate_hz: int) -> npt.NDArray[np.float64]:
    """The two biquads of BS.1770 (head shelf, low cut) at any sample rate, as second-order sections ``[2, 6]``.

    The standard gives coefficients at 48 kHz only; these are the analogue prototypes behind them, transformed
    bilinearly.
    """
    gain_db, quality, centre_hz = 3.999843853973347, 0.7071752369554196, 1681.974450955533
    k = math.tan(math.pi * centre_hz / rate_hz)
    high = 10 ** (gain_db / 20)
    band = high**0.4996667741545416
    norm = 1 + k / quality + k * k
    shelf = [
        (high + band * k / quality + k * k) / norm,
        2 * (k * k - high) / norm,
        (high - band * k / quality + k * k) / norm,
        1.0,
        2 * (k * k - 1) / norm,
        (1 - k / quality + k * k) / norm,
    ]
    quality, centre_hz = 0.5003270373238773, 38.13547087602444
    k = math.tan(math.pi * centre_hz / rate_hz)
    norm = 1 + k / quality + k * k
    cut = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / norm, (1 - k / quality + k * k) / norm]
    return np.array([shelf, cut])
