"""Can the joints of a long take be heard? Jumps of loudness and timbre at given times, against those elsewhere.

At each time two jumps are measured between the stretches of :data:`SIDE_S` before and after it: of the level, in dB,
and of the spectrum's shape (spectral flux: Euclidean distance of the two unit-length magnitude spectra). Music jumps by
itself, at every note, so a joint is only audible if its jumps are larger than those at times that are no joints. The
p-value compares the mean jump at the joints with that at the same pattern of times shifted through the whole take: it
is small where the joints stand out. Shifting keeps what neighbouring times have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hafm_lightning.audio import Audio

SIDE_S = 0.04
"""Length of the stretch before and after a time, in seconds."""
STEP_S = 0.01
"""Distance of the times with which joints are compared."""
CLEARANCE_S = 0.12
"""Times closer to a joint than this count neither way."""
SHIFT_S = 0.02
"""A joint's jump is the largest within this distance of its time, and likewise elsewhere."""
MOST = 0.5
"""Shifts that put this share of the joints near a joint are left out."""
QUIET_DB = -80.0
"""Levels below this count as this."""
TIMES_AT_ONCE = 1024
"""Times measured at once; it bounds memory."""


@dataclass(frozen=True)
class SeamTest:
    """Jumps at joints against jumps elsewhere.

    Attributes:
        joints: Number of joints.
        elsewhere: Number of other times.
        level_db: Mean jump of the level at joints, and elsewhere.
        flux: Mean spectral flux at joints, and elsewhere.
        level_p: Probability of a mean jump of the level this large, were joints like any other time.
        flux_p: The same for the flux.
    """

    joints: int
    elsewhere: int
    level_db: tuple[float, float]
    flux: tuple[float, float]
    level_p: float
    flux_p: float


def seam_test(audio: Audio, borders_s: Sequence[float]) -> SeamTest:
    """Compare the jumps at ``borders_s`` with those elsewhere in ``audio``.

    Args:
        audio: The take; channels are averaged.
        borders_s: Times of the joints, in seconds.

    Raises:
        ValueError: No joints, or the sound is too short to hold other times.
    """
    samples = audio.mono().samples[0].astype(np.float64)
    side, step = round(SIDE_S * audio.rate_hz), round(STEP_S * audio.rate_hz)
    times = np.arange(side, len(samples) - side, step)
    if not len(borders_s) or len(times) < 2:
        raise ValueError(f"need joints and sound around them, got {len(borders_s)} joints and {audio.duration_s:.3f} s")
    level, flux = _jumps(samples, times, side)
    reach = round(SHIFT_S / STEP_S)
    level, flux = _running_maximum(level, reach), _running_maximum(flux, reach)
    borders = np.asarray(borders_s, dtype=np.float64) * audio.rate_hz
    distance = np.abs(times[:, None] - borders[None]).min(axis=1)
    nearest = np.unique(np.abs(times[:, None] - borders[None]).argmin(axis=0))
    near = distance <= CLEARANCE_S * audio.rate_hz
    others = np.flatnonzero(~near)
    if not len(others):
        raise ValueError("every time is close to a joint; use a longer take")
    return SeamTest(
        joints=len(nearest),
        elsewhere=len(others),
        level_db=(float(level[nearest].mean()), float(level[others].mean())),
        flux=(float(flux[nearest].mean()), float(flux[others].mean())),
        level_p=_p_value(level, nearest, near),
        flux_p=_p_value(flux, nearest, near),
    )


def _jumps(
    samples: NDArray[np.float64], times: NDArray[np.int64], side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Jump of the level in dB and spectral flux at each time."""
    stretches, window = np.lib.stride_tricks.sliding_window_view(samples, side), np.hanning(side)
    level, flux = np.empty(len(times)), np.empty(len(times))
    for start in range(0, len(times), TIMES_AT_ONCE):
        here = slice(start, start + TIMES_AT_ONCE)
        sides = [stretches[times[here] - side], stretches[times[here]]]
        powers = [10 * np.log10(np.maximum(np.square(part).mean(axis=1), 1e-20)) for part in sides]
        before, after = (np.maximum(power, QUIET_DB) for power in powers)
        level[here] = np.abs(after - before)
        spectra = [np.abs(np.fft.rfft(part * window, axis=1)) for part in sides]
        shapes = [spectrum / np.maximum(np.linalg.norm(spectrum, axis=1, keepdims=True), 1e-12) for spectrum in spectra]
        flux[here] = np.linalg.norm(shapes[1] - shapes[0], axis=1)
    return level, flux


def _running_maximum(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """The largest of each value and its ``reach`` neighbours on either side."""
    padded = np.pad(values, reach, constant_values=-np.inf)
    maximum: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    return maximum


def _p_value(values: NDArray[np.float64], joints: NDArray[np.int64], near: NDArray[np.bool_]) -> float:
    """Share of the shifts of all joints together, round the end, whose mean is at least that of the joints in place.

    Shifts that bring most joints near a joint again (regular windows do) are no comparison and are left out.
    """
    places = (joints[None] + np.arange(len(values))[:, None]) % len(values)
    places = places[near[places].mean(axis=1) < MOST]
    if not len(places):
        raise ValueError("every time is close to a joint; use a longer take")
    means = values[places].mean(axis=1)
    return float((1 + np.count_nonzero(means >= values[joints].mean())) / (1 + len(places)))
