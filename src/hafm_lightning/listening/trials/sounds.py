"""Sounds of a trial that differ in their music alone: level, band, edges, dither and file are the same for all.

Every file, vocals and controls included, goes through the same steps:

1. Vocal and accompaniment are mixed as a take is: the accompaniment at the vocal's BS.1770 loudness.
2. The mix is brought to the study's rate, and to the band from 20 Hz to .85 of half that rate. A codec, a resampler and
   a lossy file each end at a frequency of their own, and some leave an offset; both could be seen in a spectrum.
3. Both ends are faded over 10 ms, so that no side begins with a click or with a fade of its own.
4. The loudness (ITU-R BS.1770-4) is set to the study's.
5. The samples are rounded to 16 bits with triangular dither of one step, drawn for each file: no file is a copy of
   another one, also where two hold the same music.

The true peak stays below :data:`PEAK_DBTP` by one gain for the whole study, since a quieter trial would tell that one
of its sides has high peaks.

BS.1770 says nothing about sound below its absolute gate of -70 LUFS. Such sound is measured after it was brought to an
RMS of -20 dB, and sound shorter than the gating block of .4 s in one block of its own length. Silence has no loudness
and cannot be a side of a trial.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import Audio, loudness_lufs, mix, resample, true_peak_dbtp

Samples = npt.NDArray[np.float32]

PEAK_DBTP = -1.0
LOWEST_HZ = 20.0
PASS_SHARE, STOP_SHARE = 0.85, 0.90
"""Edges of the band, as shares of half the rate: everything below the first stays, nothing above the second."""
STOP_DB = 100.0
FADE_S = 0.01
LEVEL_DB = -20.0
"""RMS at which sound below the gate is measured."""
LOUDNESS_TOLERANCE = 0.005
"""Distance from the target loudness, in LU, that is left."""


def loudness_of(samples: Samples, rate_hz: int) -> float:
    """BS.1770 loudness of ``[L]`` in LUFS, also of sound below the absolute gate; ``-inf`` for silence."""
    loudness = loudness_lufs(Audio(samples[None], rate_hz))
    if math.isfinite(loudness) or not samples.any():
        return loudness
    rms = math.sqrt(float(np.square(samples, dtype=np.float64).mean()))
    gain_db = LEVEL_DB - 20 * math.log10(rms)
    return loudness_lufs(Audio(_scaled(samples, gain_db)[None], rate_hz)) - gain_db


def mixed(vocal: Samples, accompaniment: Samples, rate_hz: int) -> Samples:
    """Vocal and accompaniment ``[L]``, the accompaniment at the loudness of the vocal."""
    # `mix` leaves sound below the gate as quiet as it is
    level_db = loudness_of(vocal, rate_hz) - loudness_of(accompaniment, rate_hz)
    band = _scaled(accompaniment, level_db) if math.isfinite(level_db) else accompaniment
    return np.asarray(mix(Audio(vocal[None], rate_hz), Audio(band[None], rate_hz), match_loudness=False).samples[0])


def alike(samples: Samples, rate_hz: int, study_hz: int, target_lufs: float) -> Samples:
    """Steps 2 to 4: ``[L]`` at ``rate_hz`` -> ``[L * study_hz / rate_hz]`` in the common band, at ``target_lufs``.

    Raises:
        ValueError: The sound is silent in that band.
    """
    sound = _faded(_in_band(resample(samples, rate_hz, study_hz), study_hz), study_hz)
    for _ in range(4):  # the absolute gate makes the loudness not quite linear in the gain
        distance = target_lufs - loudness_of(sound, study_hz)
        if not math.isfinite(distance):
            raise ValueError("the sound is silent")
        if abs(distance) <= LOUDNESS_TOLERANCE:
            break
        sound = _scaled(sound, distance)
    return sound


def peak_of(samples: Samples, rate_hz: int) -> float:
    """True peak of ``[L]`` in dB re full scale."""
    return true_peak_dbtp(Audio(samples[None], rate_hz))


def rounded(samples: Samples, gain_db: float, seed: str) -> Samples:
    """``[L]`` with a gain, as multiples of 2^-15 with triangular dither; the seed draws the dither."""
    digest = hashlib.sha256(seed.encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    noise = generator.random((2, len(samples)))
    scale = 1 << 15
    whole = np.rint(samples * np.float64(10 ** (gain_db / 20) * scale) + noise[0] - noise[1])
    return (np.clip(whole, -scale, scale - 1) / scale).astype(np.float32)


def _scaled(samples: Samples, gain_db: float) -> Samples:
    return np.asarray(samples * np.float32(10 ** (gain_db / 20)), dtype=np.float32)


def _in_band(samples: Samples, rate_hz: int) -> Samples:
    from scipy.signal import oaconvolve, sosfiltfilt

    low_cut, taps = _filters(rate_hz)
    high_passed = sosfiltfilt(low_cut, samples.astype(np.float64), padlen=min(rate_hz // 4, len(samples) - 1))
    return np.asarray(oaconvolve(high_passed, taps, mode="same"), dtype=np.float32)


@lru_cache(maxsize=8)
def _filters(rate_hz: int) -> tuple[Any, Any]:
    """A high pass in second-order sections, and the taps of a low pass with linear phase."""
    from scipy.signal import butter, firwin, kaiserord

    taps, beta = kaiserord(STOP_DB, STOP_SHARE - PASS_SHARE)
    middle = (PASS_SHARE + STOP_SHARE) / 2
    return butter(2, LOWEST_HZ, "highpass", fs=rate_hz, output="sos"), firwin(taps | 1, middle, window=("kaiser", beta))


def _faded(samples: Samples, rate_hz: int) -> Samples:
    size = min(round(FADE_S * rate_hz), len(samples) // 2)
    ramp = np.sin(np.pi / 2 * (np.arange(size) + 0.5) / max(size, 1)) ** 2
    sound = samples.astype(np.float64)
    sound[:size] *= ramp
    sound[len(sound) - size :] *= ramp[::-1]
    return sound.astype(np.float32)
