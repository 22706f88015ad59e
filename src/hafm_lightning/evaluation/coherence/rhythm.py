"""Rhythm: do the beats and the onsets of an accompaniment agree with the song's?

* **Beats.** Tracked on the original mix and on vocal + candidate, compared by mir_eval: F-measure with a window of
  70 ms, CMLt (right metrical level, share of correct beats) and AMLt (also double, half and off-beat allowed). A clip
  without beats scores 0 and is counted.
* **Onsets.** F-measure with 50 ms between the onsets of two signals.

Both start from the same onset strength: librosa's mean positive flux of the log-mel spectrum.

librosa's onset and beat functions are compiled by Numba at their first use and cached on disk. Where two processes of a
new environment do that at the same moment, Numba may cache parts that do not belong together, and every later process
that loads them ends in a segmentation fault. So the first use in each process happens under a lock of the machine.

Source: Davies, Degara and Plumbley, "Evaluation methods for musical audio beat tracking algorithms" (2009), as
implemented by mir_eval; Ellis, "Beat tracking by dynamic programming" (2007), as implemented by librosa.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import resample
from hafm_lightning.processes.locks import one_at_a_time

Times = npt.NDArray[np.float64]

ANALYSIS_RATE_HZ = 22050
BEAT_WINDOW_S = 0.07
ONSET_WINDOW_S = 0.05
_HOP = 256


@lru_cache(maxsize=1)
def compiled_librosa() -> Any:
    """The module, with its onset and beat functions compiled, or loaded from an earlier process's cache."""
    import librosa

    clicks = np.zeros(4 * ANALYSIS_RATE_HZ, np.float32)
    for start in range(0, len(clicks), ANALYSIS_RATE_HZ // 2):
        clicks[start : start + 200] = 1
    with one_at_a_time(_lock_path()):
        strength = librosa.onset.onset_strength(y=clicks, sr=ANALYSIS_RATE_HZ, hop_length=_HOP)
        common: dict[str, Any] = {
            "onset_envelope": strength,
            "sr": ANALYSIS_RATE_HZ,
            "hop_length": _HOP,
            "units": "time",
        }
        librosa.onset.onset_detect(**common)
        librosa.beat.beat_track(**common, trim=False)
    return librosa


def _lock_path() -> Path:
    """A file for this user's processes on this machine, by number: in a container the user may have no name."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    return Path(tempfile.gettempdir()) / f"hafm-lightning-{user}-librosa.lock"


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


def compare_beats(reference_s: Times, candidate_s: Times) -> BeatScores:
    """Scores of two beat sequences, in seconds: the song's own, and that of vocal + candidate.

    Fewer than two beats on a side count as none found.
    """
    import mir_eval

    if len(reference_s) < 2 or len(candidate_s) < 2:
        return BeatScores(0.0, 0.0, 0.0, found=False)
    f_measure = mir_eval.beat.f_measure(reference_s, candidate_s, f_measure_threshold=BEAT_WINDOW_S)
    _, cmlt, _, amlt = mir_eval.beat.continuity(reference_s, candidate_s)
    return BeatScores(float(f_measure), float(cmlt), float(amlt), found=True)


def compare_onsets(first_s: Times, second_s: Times) -> float:
    """F-measure within 50 ms of two lists of onset times, in seconds; 0 where one of them is empty."""
    import mir_eval

    if len(first_s) == 0 or len(second_s) == 0:
        return 0.0
    return float(mir_eval.onset.f_measure(first_s, second_s, window=ONSET_WINDOW_S)[0])
