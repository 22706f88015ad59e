"""Harmony: do the pitch classes of an accompaniment agree with what is sung?

A chroma frame holds the strength of the twelve pitch classes. Here only spectral peaks count, each at its
interpolated frequency, and the median of the twelve is taken off: drums and a vocoder's noise spread over all pitch
classes and would otherwise make any two frames alike.

Source of the key profiles: Krumhansl and Kessler, "Tracing the dynamic changes in perceived tonal organization in a
spatial representation of musical keys" (1982). Weights of near misses: MIREX audio key detection, by mir_eval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.coherence import ANALYSIS_RATE_HZ, at_analysis_rate
from hafm_lightning.toyband.score import PITCH_CLASSES

Chroma = npt.NDArray[np.float64]

CHROMA_HOP = 1102
"""Samples from chroma frame to chroma frame: 50 ms."""

_WINDOW = 4096
_LOW_HZ, _HIGH_HZ = 65.0, 2000.0
_GATE_DB = 30.0
"""Frames this far below the loudest one count as silent."""
_VOICED_BELOW_HZ, _VOICED_SHARE = 2000.0, 0.6
_MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


class HarmonyTrack:
    """Chroma of a mono signal ``[L]``; ValueError unless its samples are finite.

    Attributes:
        chroma: ``[T, 12]``, C first, each frame of unit length or all zero; frame ``t`` is centred on
            ``t * CHROMA_HOP / ANALYSIS_RATE_HZ`` seconds.
        audible: ``[T]``, frames within 30 dB of the loudest one.
        voiced: ``[T]``, audible frames with most of their power below 2 kHz: vowels rather than consonants.
    """

    def __init__(self, audio: npt.NDArray[Any], rate_hz: int) -> None:
        signal = np.pad(at_analysis_rate(audio, rate_hz), _WINDOW // 2)
        frames = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[::CHROMA_HOP]
        magnitude = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1].astype(np.float32), axis=1))
        power = magnitude**2
        total = power.sum(axis=1)
        low = power[:, : round(_VOICED_BELOW_HZ * _WINDOW / ANALYSIS_RATE_HZ)].sum(axis=1)
        self.audible = (total > total.max() * 10 ** (-_GATE_DB / 10)) & (total > 1e-12)
        self.voiced = self.audible & (low > _VOICED_SHARE * total)
        chroma = np.where(self.audible[:, None], _peak_chroma(magnitude), 0.0)
        length = np.linalg.norm(chroma, axis=1, keepdims=True)
        self.chroma: Chroma = np.divide(chroma, length, out=np.zeros_like(chroma), where=length > 0)

    def key(self) -> str | None:
        """The key whose Krumhansl-Kessler profile correlates best with the mean chroma; None in silence."""
        return estimate_key(self.chroma.sum(axis=0))


def _peak_chroma(magnitude: npt.NDArray[Any]) -> Chroma:
    """Spectra ``[T, bins]`` -> chroma ``[T, 12]``: a peak's magnitude goes to its two nearest pitch classes."""
    level = np.log(magnitude + 1e-9)
    before, here, after = level[:, :-2], level[:, 1:-1], level[:, 2:]
    peak = (here > before) & (here >= after)
    curvature = np.where(peak, before - 2 * here + after, -1.0)
    position = np.arange(1, magnitude.shape[1] - 1) + 0.5 * (before - after) / curvature
    frequency_hz = position * ANALYSIS_RATE_HZ / _WINDOW
    frame, column = np.nonzero(peak & (frequency_hz > _LOW_HZ) & (frequency_hz < _HIGH_HZ))
    midi = 69 + 12 * np.log2(frequency_hz[frame, column] / 440.0)
    lower = np.floor(midi).astype(int)
    strength = magnitude[frame, column + 1]
    chroma = np.zeros((len(magnitude), 12))
    np.add.at(chroma, (frame, lower % 12), strength * (lower + 1 - midi))
    np.add.at(chroma, (frame, (lower + 1) % 12), strength * (midi - lower))
    above: Chroma = np.maximum(chroma - np.median(chroma, axis=1, keepdims=True), 0.0)
    return above


def compare_chroma(vocal: HarmonyTrack, accompaniment: HarmonyTrack) -> float:
    """Mean cosine of the two chromas over the vocal's voiced frames, 0 to 1.

    Where the accompaniment is silent under the voice the cosine is 0; so is the score of a vocal without voiced frames.

    Raises:
        ValueError: The signals differ in length.
    """
    if vocal.chroma.shape != accompaniment.chroma.shape:
        raise ValueError(
            f"expected signals of one length, got {len(vocal.chroma)} and {len(accompaniment.chroma)} chroma frames"
        )
    if not vocal.voiced.any():
        return 0.0
    return float((vocal.chroma * accompaniment.chroma).sum(axis=1)[vocal.voiced].mean())


def estimate_key(chroma: npt.NDArray[Any]) -> str | None:
    """Best of the 24 keys for a mean chroma ``[12]``, such as ``"F# minor"``; None if it has no shape."""
    if np.ptp(chroma) <= 0:
        return None
    scores = {
        f"{PITCH_CLASSES[tonic]} {mode}": float(np.corrcoef(np.roll(profile, tonic), chroma)[0, 1])
        for mode, profile in (("major", _MAJOR_PROFILE), ("minor", _MINOR_PROFILE))
        for tonic in range(12)
    }
    return max(scores, key=lambda name: scores[name])


def compare_keys(reference: str | None, candidate: str | None) -> float:
    """MIREX score of an accompaniment's key against that of the original mix.

    It is 1 for the same key, 0.5 a fifth above, 0.3 relative, 0.2 parallel, else 0; 0 too where a side has no key.
    """
    import mir_eval

    if reference is None or candidate is None:
        return 0.0
    return float(mir_eval.key.weighted_score(reference, candidate))
