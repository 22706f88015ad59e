"""Accompaniment and vocal as one sound, in which the singer stays as loud as they sang::

    voice   lowered only as far as its own true peak is above the ceiling
    band    BS.1770 loudness of the voice, then the gain that was asked for, then a limiter that looks ahead: where the
            sum would pass the ceiling, the band makes room for some milliseconds

The accompaniment alone is the band exactly as it sounds in the mix, so that a mix at other levels begins from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import PEAK_LIMIT_DBTP, Audio, Samples, limit_peak, loudness_lufs, resample, true_peak_dbtp
from hafm_lightning.errors import RequestError

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 8000, 192_000
MOST_GAIN_DB, LOWEST_PEAK_DBTP = 60.0, -60.0
LIMITER_S = 0.005
"""Time that the limiter looks ahead and takes to let go."""
LEAST_GAIN = 1e-6
"""Reported where the limiter leaves nothing."""
_BLOCK_S = 10.0
_MARGIN = 64  # samples around a block: more than the resampler's reach
_OVERSAMPLING = 4
_ROUNDS = 6


@dataclass(frozen=True)
class MixOptions:
    """How accompaniment and vocal are mixed.

    Attributes:
        gain_db: Gain of the accompaniment, after loudness matching.
        match_loudness: Bring the accompaniment to the vocal's BS.1770 loudness first.
        peak_dbtp: True-peak ceiling of accompaniment and mix, in dB below full scale.
        rate_hz: Sample rate of both files; None for that of the vocal.
        channels: 1 or 2 for a mono or stereo mix; None for those of the vocal, two at most.
    """

    gain_db: float = 0.0
    match_loudness: bool = True
    peak_dbtp: float = PEAK_LIMIT_DBTP
    rate_hz: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if not -MOST_GAIN_DB <= self.gain_db <= MOST_GAIN_DB:
            raise RequestError(
                f"gain_db must be from {-MOST_GAIN_DB:g} to {MOST_GAIN_DB:g} decibels, got {self.gain_db:g}"
            )
        if not LOWEST_PEAK_DBTP <= self.peak_dbtp <= 0:
            raise RequestError(f"peak_dbtp must be from {LOWEST_PEAK_DBTP:g} to 0 dB, got {self.peak_dbtp:g}")
        if self.rate_hz is not None and not LOWEST_RATE_HZ <= self.rate_hz <= HIGHEST_RATE_HZ:
            raise RequestError(f"rate_hz must be from {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}, got {self.rate_hz}")
        if self.channels not in (None, 1, 2):
            raise RequestError(f"channels must be 1 (mono) or 2 (stereo), got {self.channels}")


@dataclass(frozen=True)
class Mixed:
    """Both sounds, at one rate and of one length.

    Attributes:
        instrumental: The band as it sounds in the mix, ``[1, L]``.
        mix: Voice and band, ``[channels, L]``.
        voice_gain_db: Gain of the voice; 0 unless its own peak is above the ceiling.
        band_gain_db: Gain of the decoded band, without the limiter.
        most_limited_db: The limiter's strongest reduction.
    """

    instrumental: Audio
    mix: Audio
    voice_gain_db: float
    band_gain_db: float
    most_limited_db: float


def mix_take(vocal: Audio, sound: Audio, options: MixOptions) -> Mixed:
    """Mix a vocal with the decoded accompaniment; both results are as long as the vocal, at ``options.rate_hz``."""
    own = min(max(vocal.rate_hz, LOWEST_RATE_HZ), HIGHEST_RATE_HZ)
    rate_hz = own if options.rate_hz is None else options.rate_hz
    channels = min(2, vocal.channels) if options.channels is None else options.channels
    samples = vocal.samples if channels >= vocal.channels else vocal.mono().samples
    samples = np.ascontiguousarray(np.broadcast_to(samples, (channels, samples.shape[1])))
    given = Audio(resample(samples, vocal.rate_hz, rate_hz), rate_hz)
    voice = limit_peak(given, options.peak_dbtp)
    voice_gain = _ratio(voice.samples, given.samples)

    length = voice.samples.shape[1]
    band = resample(sound.samples, sound.rate_hz, rate_hz)[:, :length]
    band = np.pad(band, ((0, 0), (0, length - band.shape[1])))
    gain_db = options.gain_db
    if options.match_loudness:
        difference = loudness_lufs(voice) - loudness_lufs(Audio(band, rate_hz))
        gain_db += difference if math.isfinite(difference) else 0.0
    scaled = (band * np.float64(10 ** (gain_db / 20))).astype(np.float32)
    limited, least = limit_band(voice.samples, scaled, rate_hz, options.peak_dbtp)
    mixed = Audio(voice.samples + limited, rate_hz)
    return Mixed(Audio(limited, rate_hz), mixed, 20 * math.log10(voice_gain), gain_db, -20 * math.log10(least))


def limit_band(voice: Samples, band: Samples, rate_hz: int, peak_dbtp: float) -> tuple[Samples, float]:
    """Lower the band ``[1, L]`` where it, or its sum with the voice ``[channels, L]``, passes the ceiling.

    Returns:
        The limited band ``[1, L]``, and the smallest gain that the limiter took. The true peaks of the band and of the
        sum are at most ``peak_dbtp``, if that of the voice is.
    """
    ceiling, limited, least = 10 ** (peak_dbtp / 20), band, 1.0
    for attempt in range(_ROUNDS):
        # a changing gain moves the peaks between samples a little: go on with what is left
        gain = _gain_curve(voice, limited, rate_hz, ceiling * (1 - 1e-4 * attempt))
        if gain is None:
            return limited, max(least, LEAST_GAIN)
        limited, least = limited * gain, least * float(gain.min())
    peak_db = max(true_peak_dbtp(Audio(voice + limited, rate_hz)), true_peak_dbtp(Audio(limited, rate_hz)))
    if peak_db > peak_dbtp and true_peak_dbtp(Audio(voice, rate_hz)) <= peak_dbtp:
        rest = _fitting_gain(voice, limited, rate_hz, peak_dbtp)
        limited, least = limited * np.float32(rest), least * rest
    return limited, max(least, LEAST_GAIN)


def _fitting_gain(voice: Samples, band: Samples, rate_hz: int, peak_dbtp: float) -> float:
    """The largest of some constant gains below 1 with which the sum stays below the ceiling; 0 if none does."""
    for gain in (0.999, 0.99, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2):
        scaled = band * np.float32(gain)
        if max(true_peak_dbtp(Audio(x, rate_hz)) for x in (voice + scaled, scaled)) <= peak_dbtp:
            return gain
    return 0.0


def _gain_curve(voice: Samples, band: Samples, rate_hz: int, ceiling: float) -> Samples | None:
    """Gain of the band ``[1, L]``, from 0 to 1, that keeps band and sum below the ceiling; None for 1 everywhere."""
    from scipy.ndimage import minimum_filter1d, uniform_filter1d

    allowed = np.concatenate(list(_allowed(voice, band, rate_hz, ceiling)))
    if allowed.size == 0 or allowed.min() >= 1:
        return None
    half = max(1, round(LIMITER_S * rate_hz))
    # the mean over a window of minima over the same window is nowhere above the gain that is allowed there
    smooth = uniform_filter1d(minimum_filter1d(allowed, 2 * half + 1, mode="nearest"), 2 * half + 1, mode="nearest")
    gain: Samples = np.minimum(np.clip(smooth, 0, 1), allowed).astype(np.float32)[None]
    return gain


def _allowed(voice: Samples, band: Samples, rate_hz: int, ceiling: float) -> Iterator[npt.NDArray[np.float64]]:
    """Largest gain of the band at each sample, block by block: of the samples and of the values between them."""
    block, length = max(1, round(_BLOCK_S * rate_hz)), band.shape[1]
    for begin in range(0, length, block):
        first, last = max(0, begin - _MARGIN), min(length, begin + block + _MARGIN)
        both = np.concatenate([voice[:, first:last], band[:, first:last]])
        fine = resample(both, rate_hz, rate_hz * _OVERSAMPLING).astype(np.float64)
        frames = last - first
        fine = np.pad(fine, ((0, 0), (0, frames * _OVERSAMPLING - fine.shape[1])))
        between = _largest_gain(fine[:-1], fine[-1], ceiling).reshape(frames, _OVERSAMPLING)
        exact = _largest_gain(both[:-1].astype(np.float64), both[-1].astype(np.float64), ceiling)
        # a value between two samples belongs to both of them
        after = between.min(axis=1)
        before = np.concatenate([after[:1], after[:-1]])
        yield np.minimum(np.minimum(after, before), exact)[begin - first : min(length, begin + block) - first]


def _largest_gain(
    voice: npt.NDArray[np.float64], band: npt.NDArray[np.float64], ceiling: float
) -> npt.NDArray[np.float64]:
    """Largest gain in [0, 1] ``[n]`` with which ``|voice + gain * band|`` and ``|gain * band|`` stay below the ceiling.

    ``voice`` is ``[channels, n]``, ``band`` is ``[n]``.
    """
    size = np.maximum(np.abs(band), 1e-30)
    room = np.minimum(ceiling, (ceiling - np.sign(band) * voice).min(axis=0))
    gain: npt.NDArray[np.float64] = np.clip(room / size, 0.0, 1.0)
    return gain


def _ratio(after: Samples, before: Samples) -> float:
    """Gain between two signals that differ in level alone."""
    peak = float(np.abs(before).max(initial=0.0))
    return float(np.abs(after).max(initial=0.0)) / peak if peak else 1.0
