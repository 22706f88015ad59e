"""The quality filter: measurements of a clip, and the rules by which clips are dropped.

The log has the measurements of all clips, also of dropped ones, so that thresholds can be chosen from it. Loudness
follows ITU-R BS.1770-4, its range EBU Tech 3342; both use one pass of K-weighting and energies of 100 ms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from hafm_lightning.songs.clips import ClipSound
from hafm_lightning.songs.stems import Window, to_stereo

Samples = npt.NDArray[np.float32]
Energies = npt.NDArray[np.float64]

SILENCE_LUFS = -200.0  # stands for `-inf` in logs, which JSON cannot hold
RULES_VERSION = 2
"""Recorded with the settings. 2: activity is relative to the mixture; the float sum of stems cannot clip."""
_FRAME_S = 0.05  # length of the frames on which activity and silence are measured, in seconds
_FULL_SCALE = 0.999  # samples of at least this magnitude count as clipped
_AROUND_FRAMES = 21  # frames around a frame, a second, whose mean power is the level of the mixture there
_LOW_END_HZ = (20.0, 100.0)  # bass and bass drum; singing has little there
_STEP_S = 0.1
_OFFSET_DB = -0.691
_ABSOLUTE_GATE_LUFS = -70.0


@dataclass(frozen=True)
class FilterSettings:
    """Thresholds of the quality filter; ``null`` switches a rule off.

    Attributes:
        gate_dbfs: A stem is active in a frame of 50 ms whose RMS (without DC) is above this, in dB re full scale.
        gate_below_mixture_db: It is active only where it is also at most this far below the mixture around the frame
            (one second), so that what a separator leaves of other sounds does not count. ``null``: ``gate_dbfs`` alone.
        silence_dbfs: The mixture is silent in a frame whose RMS is below this.
        vocal_activity_min: Smallest share of frames with singing.
        instrumental_activity_min: Smallest share of frames with accompaniment.
        clipping_max: Largest share of samples at full scale, of a stem or a mixture that was separated. The sum of
            given stems is no file and is not tokenized: it may exceed full scale.
        silence_max: Largest share of silent frames.
        dc_offset_max: Largest mean of a stem, full scale is 1.
        leakage_max: Largest correlation (absolute, without lag) between vocal and instrumental waveform; it is high if
            separation left one stem in the other.
        loudness_min_lufs: Smallest integrated loudness of the mixture.
        loudness_max_lufs: Largest integrated loudness of the mixture.
        loudness_range_max_lu: Largest loudness range of the mixture.
    """

    gate_dbfs: float = -45.0
    gate_below_mixture_db: float | None = 20.0
    silence_dbfs: float = -60.0
    vocal_activity_min: float | None = 0.2
    instrumental_activity_min: float | None = 0.5
    clipping_max: float | None = 0.005
    silence_max: float | None = 0.3
    dc_offset_max: float | None = 0.05
    leakage_max: float | None = 0.3
    loudness_min_lufs: float | None = -40.0
    loudness_max_lufs: float | None = 0.0
    loudness_range_max_lu: float | None = 25.0


@dataclass(frozen=True)
class Measurements:
    """The measurements of one clip; each rule tests one of them."""

    vocal_activity: float  # share of frames with singing
    instrumental_activity: float  # share of frames with accompaniment
    clipping: float  # share of samples at full scale, the largest of vocal, instrumental and a separated mixture
    silence: float  # share of silent frames of the mixture
    dc_offset: float  # largest absolute mean of vocal and instrumental
    leakage: float  # absolute correlation of vocal and instrumental
    loudness_lufs: float  # integrated loudness of the mixture; -200 stands for silence
    loudness_range_lu: float  # loudness range of the mixture
    # No rule tests the rest; the report sums it up.
    vocal_bleed: float = 0.0  # share of frames with a vocal above the absolute gate alone
    low_end_db: float = 0.0  # power of the vocal from 20 to 100 Hz relative to the instrumental's; 0 if there is none
    cancelled: float = 0.0  # 1 if the channels of a stem cancel each other, so that one of them is used alone

    def as_dict(self) -> dict[str, float]:
        """Name -> value, rounded to six digits."""
        return {field.name: round(float(getattr(self, field.name)), 6) for field in fields(self)}


RULES: Mapping[str, Callable[[Measurements, FilterSettings], bool]] = {
    "vocal_activity": lambda m, s: _below(m.vocal_activity, s.vocal_activity_min),
    "instrumental_activity": lambda m, s: _below(m.instrumental_activity, s.instrumental_activity_min),
    "clipping": lambda m, s: _above(m.clipping, s.clipping_max),
    "silence": lambda m, s: _above(m.silence, s.silence_max),
    "dc_offset": lambda m, s: _above(m.dc_offset, s.dc_offset_max),
    "leakage": lambda m, s: _above(m.leakage, s.leakage_max),
    "loudness": lambda m, s: (
        _below(m.loudness_lufs, s.loudness_min_lufs) or _above(m.loudness_lufs, s.loudness_max_lufs)
    ),
    "loudness_range": lambda m, s: _above(m.loudness_range_lu, s.loudness_range_max_lu),
}
"""Name of a rule -> true if it drops a clip. The report counts clips by these names."""


def broken_rules(measurements: Measurements, settings: FilterSettings) -> list[str]:
    """Names of the rules that a clip breaks, in the order of :data:`RULES`; empty keeps the clip."""
    return [name for name, breaks in RULES.items() if breaks(measurements, settings)]


def measure(window: Window, sound: ClipSound, settings: FilterSettings) -> Measurements:
    """All measurements of one clip."""
    vocal, instrumental = window.inner(window.vocal), window.inner(window.instrumental)
    mixture = vocal + instrumental
    frame = max(1, round(_FRAME_S * window.rate_hz))
    integrated, loudness_range = loudness_and_range(
        mixture if len(mixture) <= 2 else to_stereo(mixture), window.rate_hz
    )
    parts = (vocal, instrumental, mixture) if window.separated else (vocal, instrumental)
    active, bleed = _activity(vocal, mixture, frame, settings)
    return Measurements(
        vocal_activity=active,
        instrumental_activity=_activity(instrumental, mixture, frame, settings)[0],
        clipping=max(float((np.abs(part) >= _FULL_SCALE).mean()) for part in parts),
        silence=float((frame_levels(mixture, frame) < settings.silence_dbfs).mean()),
        dc_offset=max(float(np.abs(part.mean(axis=1, dtype=np.float64)).max()) for part in (vocal, instrumental)),
        leakage=correlation(sound.vocal, sound.instrumental),
        loudness_lufs=max(integrated, SILENCE_LUFS),
        loudness_range_lu=loudness_range,
        vocal_bleed=bleed,
        low_end_db=_low_end_db(vocal, instrumental, window.rate_hz),
        cancelled=float(window.cancelled),
    )


def _activity(stem: Samples, mixture: Samples, frame: int, settings: FilterSettings) -> tuple[float, float]:
    """Share of active frames, and share of frames above the absolute gate alone."""
    levels = frame_levels(stem, frame)
    audible = levels > settings.gate_dbfs
    if settings.gate_below_mixture_db is None:
        return float(audible.mean()), 0.0
    power, window = 10 ** (frame_levels(mixture, frame) / 10), np.ones(_AROUND_FRAMES)
    around = np.convolve(power, window)[_AROUND_FRAMES // 2 :][: len(power)]
    around /= np.convolve(np.ones_like(power), window)[_AROUND_FRAMES // 2 :][: len(power)]
    loud_enough = levels > 10 * np.log10(around) - settings.gate_below_mixture_db
    return float((audible & loud_enough).mean()), float((audible & ~loud_enough).mean())


def _low_end_db(vocal: Samples, instrumental: Samples, rate_hz: int) -> float:
    """Low-frequency power of the vocal relative to the instrumental's, -60 to 60 dB; 0 if neither has any."""
    powers = []
    for stem in (vocal, instrumental):
        spectrum = np.abs(np.fft.rfft(stem.mean(axis=0, dtype=np.float64))) / stem.shape[1]
        hz = np.fft.rfftfreq(stem.shape[1], 1 / rate_hz)
        powers.append(float(np.square(spectrum[(hz >= _LOW_END_HZ[0]) & (hz <= _LOW_END_HZ[1])]).sum()))
    if max(powers) < 1e-8:  # -80 dB re full scale
        return 0.0
    return float(np.clip(10 * math.log10((powers[0] + 1e-20) / (powers[1] + 1e-20)), -60.0, 60.0))


def frame_levels(samples: Samples, frame: int) -> npt.NDArray[np.float64]:
    """RMS level of each frame of ``[C, L]`` over all channels, DC of the clip removed, in dB re full scale ``[n]``."""
    frames = max(1, samples.shape[1] // frame)
    used = samples[:, : frames * frame]
    centred = used - used.mean(axis=1, keepdims=True)
    power = np.square(centred, dtype=np.float64).reshape(len(samples), frames, -1).mean(axis=(0, 2))
    levels: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(power, 1e-20))
    return levels


def correlation(first: Samples, second: Samples) -> float:
    """Absolute Pearson correlation of two waveforms ``[L]``; 0 if one of them is constant."""
    a = first.astype(np.float64) - first.mean(dtype=np.float64)
    b = second.astype(np.float64) - second.mean(dtype=np.float64)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return abs(float(a @ b)) / scale if scale > 1e-12 else 0.0


def loudness_and_range(samples: Samples, rate_hz: int) -> tuple[float, float]:
    """Integrated loudness in LUFS (``-inf`` for silence) and loudness range in LU of ``[C, L]``, ``C`` 1 or 2."""
    from scipy.signal import sosfilt

    step = round(_STEP_S * rate_hz)
    steps = samples.shape[1] // step
    if steps < 1:
        return -math.inf, 0.0
    weighted = sosfilt(_k_weighting(rate_hz), samples[:, : steps * step], axis=1)
    energies = np.square(weighted.reshape(len(samples), steps, step)).mean(axis=2).sum(axis=0)
    loud = _gated(_moving_mean(energies, 4), relative_db=-10.0)
    integrated = float(_OFFSET_DB + 10 * math.log10(loud.mean())) if len(loud) else -math.inf
    loud = _gated(_moving_mean(energies, 30), relative_db=-20.0)
    if not len(loud):
        return integrated, 0.0
    low, high = np.percentile(10 * np.log10(loud), (10, 95))
    return integrated, float(high - low)


def _gated(blocks: Energies, relative_db: float) -> Energies:
    """Blocks above the absolute gate, and above the gate relative to their mean."""
    loud = blocks[blocks > 10 ** ((_ABSOLUTE_GATE_LUFS - _OFFSET_DB) / 10)]
    return loud[loud > loud.mean() * 10 ** (relative_db / 10)] if len(loud) else loud


def _moving_mean(energies: Energies, width: int) -> Energies:
    width = min(width, len(energies))
    return np.convolve(energies, np.full(width, 1 / width), mode="valid")


@functools.lru_cache(maxsize=16)
def _k_weighting(rate_hz: int) -> npt.NDArray[np.float64]:
    """The two biquads of BS.1770 (head shelf, low cut) as second-order sections ``[2, 6]``."""
    # The standard gives coefficients at 48 kHz only; these are De Man's analogue prototypes, transformed bilinearly.
    from pyloudnorm.iirfilter import IIRfilter

    shelf = IIRfilter(3.99984385397, 0.7071752369554193, 1681.9744509555319, rate_hz, "high_shelf_DeMan")
    cut = IIRfilter(0.0, 0.5003270373253953, 38.13547087613982, rate_hz, "high_pass_DeMan")
    return np.array([[*stage.b, *stage.a] for stage in (shelf, cut)])


def _below(value: float, threshold: float | None) -> bool:
    return threshold is not None and value < threshold


def _above(value: float, threshold: float | None) -> bool:
    return threshold is not None and value > threshold
