"""Rhythm: do the beats and the onsets of an accompaniment agree with the song's?

Both start from the same onset strength: librosa's mean positive flux of the log-mel spectrum. Beats are tracked on the
original mix and on vocal + candidate; onsets are compared between two signals.

Source: Davies, Degara and Plumbley, "Evaluation methods for musical audio beat tracking algorithms" (2009), as
implemented by mir_eval; Ellis, "Beat tracking by dynamic programming" (2007), as implemented by librosa.
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.coherence import ANALYSIS_RATE_HZ, at_analysis_rate
from hafm_lightning.processes.locks import one_at_a_time

Times = npt.NDArray[np.float64]

BEAT_WINDOW_S = 0.07
ONSET_WINDOW_S = 0.05
BEAT_METRICS = ("beat_f_measure", "beat_cmlt", "beat_amlt", "beats_found")
"""Keys of :func:`compare_beats`."""
_ANALYSIS: dict[str, Any] = {"sr": ANALYSIS_RATE_HZ, "hop_length": 256}


@lru_cache(maxsize=1)
def compiled_librosa() -> Any:
    """The module, with its onset and beat functions compiled, or loaded from an earlier process's cache.

    Numba compiles them at their first use and caches them on disk. Where two processes of a new environment do that at
    the same moment, it may cache parts that do not belong together, and every later process that loads them ends in a
    segmentation fault. So the first use in each process happens under a lock of the machine.
    """
    import librosa

    clicks = np.zeros(4 * ANALYSIS_RATE_HZ, np.float32)
    for start in range(0, len(clicks), ANALYSIS_RATE_HZ // 2):
        clicks[start : start + 200] = 1
    user = os.getuid() if hasattr(os, "getuid") else ""  # a number: in a container the user may have no name
    with one_at_a_time(Path(tempfile.gettempdir()) / f"hafm-lightning-{user}-librosa.lock"):
        strength = librosa.onset.onset_strength(y=clicks, **_ANALYSIS)
        librosa.onset.onset_detect(onset_envelope=strength, units="time", **_ANALYSIS)
        librosa.beat.beat_track(onset_envelope=strength, units="time", trim=False, **_ANALYSIS)
    return librosa


class RhythmTrack:
    """Onset strength of a mono signal ``[L]``, from which onsets and beats are read; ValueError unless it is finite."""

    def __init__(self, audio: npt.NDArray[Any], rate_hz: int) -> None:
        signal = at_analysis_rate(audio, rate_hz)
        self.silent = not audio.any()
        self.strength: npt.NDArray[np.float32] = compiled_librosa().onset.onset_strength(y=signal, **_ANALYSIS)

    def onsets(self) -> Times:
        """Times of the onsets, in seconds; none in silence."""
        if self.silent:
            return np.zeros(0)
        detect = compiled_librosa().onset.onset_detect
        times: Times = detect(onset_envelope=self.strength, units="time", **_ANALYSIS)
        return times

    def beats(self) -> Times:
        """Times of the beats, in seconds; none in silence."""
        if self.silent or not self.strength.any():
            return np.zeros(0)
        track = compiled_librosa().beat.beat_track
        times: Times = track(onset_envelope=self.strength, units="time", trim=False, **_ANALYSIS)[1]
        return times


def compare_beats(reference_s: Times, candidate_s: Times) -> dict[str, float]:
    """Agreement of two beat sequences, in seconds: the song's own, and that of vocal + candidate.

    Returns:
        :data:`BEAT_METRICS` -> score from 0 to 1: F-measure within 70 ms; CMLt, the share of beats that continue
        correctly at the right metrical level; AMLt, the same with double, half and off-beat levels allowed; and 1 if
        both have beats. All are 0 with fewer than two beats on a side.
    """
    import mir_eval

    if len(reference_s) < 2 or len(candidate_s) < 2:
        return dict.fromkeys(BEAT_METRICS, 0.0)
    f_measure = mir_eval.beat.f_measure(reference_s, candidate_s, f_measure_threshold=BEAT_WINDOW_S)
    _, cmlt, _, amlt = mir_eval.beat.continuity(reference_s, candidate_s)
    return dict(zip(BEAT_METRICS, map(float, (f_measure, cmlt, amlt, 1.0)), strict=True))


def compare_onsets(first_s: Times, second_s: Times) -> float:
    """F-measure within 50 ms of two lists of onset times, in seconds; 0 where one of them is empty."""
    import mir_eval

    if len(first_s) == 0 or len(second_s) == 0:
        return 0.0
    return float(mir_eval.onset.f_measure(first_s, second_s, window=ONSET_WINDOW_S)[0])
