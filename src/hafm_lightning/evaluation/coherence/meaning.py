"""Does a score of coherence mean anything for this sound? Silence and noise have no harmony and no rhythm to compare.

Without this question both would score: vocal + silence has the beats of the vocal, and a noise's random spectral peaks
agree with any chroma more than another song's chords do. So every failed clip would raise a mean that it should lower.

* *Silent*: the root mean square, without any constant offset, is below -80 dBFS.
* *Without pitch*: the spectrum between 65 Hz and 10 kHz has no lines. Its flatness (geometric over arithmetic mean of
  the power, in bands of 24 bins, so that the colour of a noise does not count; weighted by the bands' power) is 0.56
  for Gaussian noise (expectation of the exponential distribution: exp(-gamma)) and below 0.2 for chords and voices.
* *Noise*: without pitch, and its envelope varies less than that of drums. Hi-hats alone have a rhythm, but no harmony,
  and a steady tone has a harmony, but no rhythm: the beats of vocal + drone are those of the vocal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.coherence import ANALYSIS_RATE_HZ, at_analysis_rate

SILENT_RMS = 1e-4
"""-80 dBFS."""
FLAT = 0.4
"""Flatness from which a sound has no pitch: noises have 0.44 (narrow bands) to 0.61, drums 0.25 to 0.32."""
STEADY, STEADY_TONE = 0.9, 0.1
"""Variation coefficient of the envelope below which a sound without pitch is noise, since drums have more than 1; and
below which a sound with pitch has no rhythm, since music has more than 0.3."""
WORST = {"beat_phase": -1.0}
"""Least value of the scores that do not end at 0."""

_WINDOW, _HOP, _BAND_BINS = 4096, 1102, 24
_LOW_HZ, _HIGH_HZ = 65.0, 10_000.0
_AUDIBLE = 1e-3  # frames 30 dB below the loudest one are not judged
_ENVELOPE_FRAME = 512


@dataclass(frozen=True)
class Meaning:
    """What of a sound can be compared; neither is true of silence and noise."""

    harmony: bool
    rhythm: bool

    @property
    def lost(self) -> bool:
        """Silence or noise: every score of coherence takes its worst value."""
        return not (self.harmony or self.rhythm)


def is_silent(sound: npt.NDArray[Any]) -> bool:
    """Whether ``sound [L]`` is below -80 dBFS; a constant offset is not heard and does not count."""
    return len(sound) == 0 or float(np.std(sound, dtype=np.float64)) < SILENT_RMS


def meaning_of(sound: npt.NDArray[Any], rate_hz: int) -> Meaning:
    """What can be compared of a mono signal ``[L]``; ValueError unless its samples are finite."""
    signal = at_analysis_rate(sound, rate_hz)
    if is_silent(sound) or is_silent(signal):  # resampling makes clicks at the ends of a constant offset
        return Meaning(harmony=False, rhythm=False)
    pitched = spectral_flatness(signal) < FLAT
    return Meaning(pitched, envelope_variation(signal) >= (STEADY_TONE if pitched else STEADY))


def spectral_flatness(signal: npt.NDArray[Any]) -> float:
    """Local flatness of a signal ``[L]`` at 22050 Hz, mean over its audible frames: 0 for lines, 0.56 for noise."""
    signal = signal - signal.mean()
    padded = np.pad(signal, (0, max(0, _WINDOW - len(signal))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1], axis=1)) ** 2  # [T, bins]
    low, high = (round(limit_hz * _WINDOW / ANALYSIS_RATE_HZ) for limit_hz in (_LOW_HZ, _HIGH_HZ))
    total = power.sum(axis=1)
    bands = power[total >= _AUDIBLE * total.max(), low : low + (high - low) // _BAND_BINS * _BAND_BINS]
    bands = bands.reshape(len(bands), -1, _BAND_BINS) + 1e-30
    flatness = np.exp(np.log(bands).mean(axis=2)) / bands.mean(axis=2)  # [T, bands]
    energy = bands.sum(axis=2)
    return float(np.average(flatness, weights=energy / energy.sum(axis=1, keepdims=True)))


def envelope_variation(signal: npt.NDArray[Any]) -> float:
    """Standard deviation over mean of the root mean square of 23 ms frames of a signal ``[L]`` at 22050 Hz."""
    count = max(1, len(signal) // _ENVELOPE_FRAME)
    frames = (signal - signal.mean())[: count * _ENVELOPE_FRAME].reshape(count, -1)
    level = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    return float(level.std() / level.mean()) if level.any() else 0.0
