"""Beats and onsets of constructed signals; librosa compiled by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from coherence_sounds import RATE_HZ, beat_agreement, clicks, onset_f1

from hafm_lightning.evaluation.coherence.rhythm import (
    RhythmTrack,
    compare_beats,
    compare_onsets,
)


def test_beats_and_onsets_are_where_the_clicks_are():
    times_s = 0.4 + 0.5 * np.arange(23)
    track = RhythmTrack(clicks(times_s), RATE_HZ)
    assert all(np.abs(track.beats() - time_s).min() < 0.04 for time_s in times_s[1:-1])
    onsets = track.onsets()
    assert len(onsets) == len(times_s)
    assert np.abs(onsets - times_s).max() < 0.03


def test_beats_half_a_beat_late_are_wrong_except_to_amlt():
    on = 0.4 + 0.5 * np.arange(23)
    exact = compare_beats(on, on)
    assert exact == {"beat_f_measure": 1.0, "beat_cmlt": 1.0, "beat_amlt": 1.0, "beats_found": 1.0}
    late = compare_beats(on, on + 0.25)
    assert (late["beat_f_measure"], late["beat_cmlt"]) == (0.0, 0.0)
    assert late["beat_amlt"] > 0.9
    near = compare_beats(on, on + 0.06)
    assert near["beat_f_measure"] == 1.0
    double = compare_beats(on, np.arange(0.4, 11.5, 0.25))
    assert double["beat_cmlt"] < 0.1 < 0.9 < double["beat_amlt"]
    assert beat_agreement(clicks(on), clicks(on), RATE_HZ)["beat_f_measure"] == 1.0


def test_no_beats_score_zero_and_are_counted():
    silence = np.zeros(10 * RATE_HZ, np.float32)
    scores = beat_agreement(clicks(np.arange(0.5, 10, 0.5), 10.0), silence, RATE_HZ)
    assert scores == {"beat_f_measure": 0.0, "beat_cmlt": 0.0, "beat_amlt": 0.0, "beats_found": 0.0}


def test_onset_f_measure_counts_hits_within_50_ms():
    first = np.array([1.0, 2.0, 3.0, 4.0])
    assert compare_onsets(first, first + 0.04) == 1.0
    assert compare_onsets(first, first + 0.06) == 0.0
    # 2 of 4 found by 3 guesses: precision 2/3, recall 1/2.
    assert compare_onsets(first, np.array([1.0, 2.0, 2.5])) == pytest.approx(4 / 7)
    assert compare_onsets(first, np.zeros(0)) == 0.0
    assert onset_f1(clicks(first), clicks(first), RATE_HZ) == 1.0
    assert onset_f1(clicks(first), np.zeros(12 * RATE_HZ, np.float32), RATE_HZ) == 0.0


CODE = """
import numpy as np
from hafm_lightning.evaluation.coherence.rhythm import RhythmTrack
clicks = np.zeros(3 * 22050, np.float32)
clicks[::11025] = 1
print(len(RhythmTrack(clicks, 22050).onsets()) > 2)
"""


@pytest.mark.slow
def test_processes_that_compile_at_once_leave_parts_that_belong_together(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True)

    for together in (2, 1):  # the second time, what the first two kept is loaded
        for process in [start() for _ in range(together)]:
            assert process.communicate(timeout=300)[0].strip() == "True"
            assert process.returncode == 0
