"""Rhythm: do the beats and the onsets of an accompaniment agree with the song's?

* **Beats.** Tracked on the original mix and on vocal + candidate, compared by mir_eval: F-measure with a window of
  70 ms, CMLt (right metrical level, share of correct beats) and AMLt (also double, half and off-beat allowed). A clip
  without beats scores 0 and is counted.
* **Onsets.** F-measure with 50 ms between the onsets of two signals.

Both start from the same onset strength: librosa's mean positive flux of the log-mel spectrum.
Source: Davies, Degara and Plumbley, "Evaluation methods for musical audio beat tracking algorithms" (2009), as
implemented by mir_eval; Ellis, "Beat tracking by dynamic programming" (2007), as implemented by librosa.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import resample
from hafm_lightning.evaluation.coherence.compiled_librosa import compiled_librosa

Times = npt.NDArray[np.float64]

ANALYSIS_RATE_HZ = 22050
BEAT_WINDOW_S = 0.07
ONSET_WINDOW_S = 0.05
_HOP = 256


@dataclass(frozen=True)
class BeatScores:
    """Agreement of two beat sequences, each from 0 to 1.

    Attributes:
        f_measure: Harmonic mean of precision and recall within :data:`BEAT_WINDOW_S`.
        cmlt: Share of beats that continue correctly at the right metrical level.
        amlt: The same, with double, half and off-beat levels allowed.
        found: Whether beats were found in both signals; where not, the scores are 0.
    """

    f_measure: float
    cmlt: float
    amlt: float
    found: bool


class RhythmTrack:
    """Onset strength of a mono signal, from which onsets and beats are read.

    Attributes:
        strength: ``[T]``, at ``rate / hop`` frames a second of the analysis.
    """

    def __init__(self, audio: npt.NDArray[Any], rate_hz: int) -> None:
        """Args:
        audio: Mono ``[L]``.
        rate_hz: Its sample rate.

        Raises:
            ValueError: The audio is not a flat array of finite numbers.
        """
        if audio.ndim != 1 or not np.isfinite(audio).all():
            raise ValueError(f"expected finite mono samples [L], got shape {audio.shape}")
        self.silent = not audio.any()
        signal = resample(audio, rate_hz, ANALYSIS_RATE_HZ)
        self.strength: npt.NDArray[np.float32] = compiled_librosa().onset.onset_strength(
            y=signal, sr=ANALYSIS_RATE_HZ, hop_length=_HOP
        )

    def onsets(self) -> Times:
        """Times of the onsets, in seconds; none in silence."""
        if self.silent:
            return np.zeros(0)
        times: Times = compiled_librosa().onset.onset_detect(
            onset_envelope=self.strength, sr=ANALYSIS_RATE_HZ, hop_length=_HOP, units="time"
        )
        return times

    def beats(self) -> Times:
        """Times of the beats, in seconds; none in silence."""
        if self.silent or not self.strength.any():
            return np.zeros(0)
        times: Times = compiled_librosa().beat.beat_track(
            onset_envelope=self.strength, sr=ANALYSIS_RATE_HZ, hop_length=_HOP, units="time", trim=False
        )[1]
        return times


def beat_agreement(reference_mix: npt.NDArray[Any], candidate_mix: npt.NDArray[Any], rate_hz: int) -> BeatScores:
    """Beats tracked on the original mix against beats tracked on vocal + candidate; both mono ``[L]``."""
    return compare_beats(RhythmTrack(reference_mix, rate_hz).beats(), RhythmTrack(candidate_mix, rate_hz).beats())


def compare_beats(reference_s: Times, candidate_s: Times) -> BeatScores:
    """Scores of two beat sequences, in seconds. Fewer than two beats on a side count as none found."""
    import mir_eval

    if len(reference_s) < 2 or len(candidate_s) < 2:
        return BeatScores(0.0, 0.0, 0.0, found=False)
    f_measure = mir_eval.beat.f_measure(reference_s, candidate_s, f_measure_threshold=BEAT_WINDOW_S)
    _, cmlt, _, amlt = mir_eval.beat.continuity(reference_s, candidate_s)
    return BeatScores(float(f_measure), float(cmlt), float(amlt), found=True)


def onset_f1(first: npt.NDArray[Any], second: npt.NDArray[Any], rate_hz: int) -> float:
    """F-measure of the onsets of two mono signals ``[L]`` within 50 ms: a vocal and its accompaniment, or two takes."""
    return compare_onsets(RhythmTrack(first, rate_hz).onsets(), RhythmTrack(second, rate_hz).onsets())


def compare_onsets(first_s: Times, second_s: Times) -> float:
    """F-measure of two lists of onset times, in seconds; 0 where one of them is empty."""
    import mir_eval

    if len(first_s) == 0 or len(second_s) == 0:
        return 0.0
    return float(mir_eval.onset.f_measure(first_s, second_s, window=ONSET_WINDOW_S)[0])
