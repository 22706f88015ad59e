"""APA: the formula against hand-made distances, the mixes against their loudness, the ranking on toy band songs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toyband_clips import CLIP_RATE_HZ, other_songs, toy_clips

from hafm_lightning.audio import Audio, loudness_lufs
from hafm_lightning.evaluation.coherence.harmony import HarmonyTrack
from hafm_lightning.evaluation.distances.adherence import (
    accompaniment_prompt_adherence,
    adherence_mixes,
    frechet_of_rows,
    random_partners,
)
from hafm_lightning.evaluation.distances.kernel_distance import kernel_distance


def at(place: float) -> np.ndarray:
    """A set of rows whose only property is where it lies."""
    return np.full((4, 1), place)


def gap(first: np.ndarray, second: np.ndarray) -> float:
    return abs(float(first.mean() - second.mean()))


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (0.0, 1.0),  # on the true pairs
        (1.0, 0.0),  # on the swapped pairs
        (0.5, 0.5),  # between them
        (0.25, 0.5 + (0.75 - 0.25) / 2),
        (-3.0, 1.0),  # beyond the true pairs: still the full gain
        (5.0, 0.0),
    ],
)
def test_formula_on_a_line(candidate, expected):
    value = accompaniment_prompt_adherence(at(0.0), at(1.0), at(candidate), distance=gap)
    assert value == pytest.approx(expected)


def test_negative_distances_count_as_none_and_equal_sets_decide_nothing():
    assert accompaniment_prompt_adherence(at(0), at(1), at(0.2), distance=lambda a, b: -1.0) == 0.5
    assert accompaniment_prompt_adherence(at(2), at(2), at(2), distance=gap) == 0.5
    with pytest.raises(ValueError, match="not finite"):
        accompaniment_prompt_adherence(at(0), at(1), at(2), distance=lambda a, b: float("nan"))
    with pytest.raises(ValueError, match="one width"):
        accompaniment_prompt_adherence(np.zeros((4, 2)), at(1), at(2))


def test_frechet_distance_of_shifted_rows():
    rows = np.random.default_rng(0).normal(size=(500, 3))
    assert frechet_of_rows(rows, rows + np.array([1.0, 2.0, 0.0])) == pytest.approx(5.0, rel=1e-6)
    # Squared distances 3 x 0.9^2, 3 x 0.1^2 and 3: a half plus 2.4 / 6.
    assert accompaniment_prompt_adherence(rows, rows + 1.0, rows + 0.1) == pytest.approx(0.9, rel=1e-6)


def sine(frequency_hz: float, amplitude: float, duration_s: float) -> Audio:
    time_s = np.arange(round(duration_s * 16000)) / 16000
    return Audio((amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)[None], 16000)


def test_mixes_are_cut_and_levelled():
    windows = adherence_mixes(sine(300, 0.5, 11.0), sine(1500, 0.003, 11.0))
    assert [window.shape for window in windows] == [(80000,), (80000,)]
    for window in windows:
        assert loudness_lufs(Audio(window[None], 16000)) == pytest.approx(-20.0, abs=0.05)
        spectrum = np.abs(np.fft.rfft(window))
        # Equal loudness, up to the K-weighting between 300 and 1500 Hz (about 2 dB).
        assert 20 * np.log10(spectrum[1500 * 5] / spectrum[300 * 5]) == pytest.approx(0.0, abs=3.0)
    silence = Audio(np.zeros((1, 80000), np.float32), 16000)
    assert loudness_lufs(Audio(adherence_mixes(silence, sine(300, 0.1, 5.0))[0][None], 16000)) == pytest.approx(
        -20, abs=0.05
    )
    with pytest.raises(ValueError, match="no window of 5"):
        adherence_mixes(sine(300, 0.5, 4.0), sine(300, 0.5, 4.0))
    with pytest.raises(ValueError, match="one rate and length"):
        adherence_mixes(sine(300, 0.5, 6.0), sine(300, 0.5, 5.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=30), st.integers(0, 1000))
def test_random_partners_are_of_other_songs_and_used_once_where_possible(songs, seed):
    if len(set(songs)) < 2:
        with pytest.raises(ValueError, match="two songs"):
            random_partners(songs, seed)
        return
    partners = random_partners(songs, seed)
    assert all(songs[own] != songs[partner] for own, partner in enumerate(partners))
    assert partners == random_partners(songs, seed)
    if 2 * max(map(songs.count, songs)) <= len(songs):
        assert sorted(partners) == list(range(len(songs)))


def test_random_partners_depend_on_the_seed():
    assert len({tuple(random_partners(range(20), seed)) for seed in range(10)}) == 10


def consonance_rows(windows: list[np.ndarray]) -> np.ndarray:
    """A small embedding that hears intervals, not pitches: each frame's chroma, sorted, averaged over the window."""
    rows = []
    for window in windows:
        track = HarmonyTrack(window, CLIP_RATE_HZ)
        rows.append(np.sort(track.chroma[track.audible], axis=1).mean(axis=0))
    return np.array(rows)


def test_apa_ranks_truth_above_transposed_and_random_with_intervals():
    clips = toy_clips()

    def rows(accompaniments: list[np.ndarray]) -> np.ndarray:
        """``[songs, windows, d]``"""
        return np.stack(
            [
                consonance_rows(
                    adherence_mixes(Audio(clip.vocal[None], CLIP_RATE_HZ), Audio(sound[None], CLIP_RATE_HZ))
                )
                for clip, sound in zip(clips, accompaniments, strict=True)
            ]
        )

    true = rows([clip.accompaniment for clip in clips])
    swapped = rows(other_songs(clips))
    candidates = {
        "late": rows([np.pad(clip.accompaniment, (800, 0))[: len(clip.vocal)] for clip in clips]),  # 50 ms
        "transposed": rows([clip.transposed for clip in clips]),
        "random": rows([clips[index - 5].accompaniment for index in range(len(clips))]),
    }

    def apa(songs: np.ndarray, candidate: np.ndarray) -> float:
        sets = (part[songs].reshape(-1, part.shape[-1]) for part in (true, swapped, candidate))
        return accompaniment_prompt_adherence(*sets, distance=kernel_distance)

    draws = np.random.default_rng(0).integers(len(clips), size=(200, len(clips)))
    intervals = {
        name: np.quantile([apa(songs, candidate) for songs in draws], [0.025, 0.975])
        for name, candidate in candidates.items()
    }
    assert apa(np.arange(len(clips)), true) == 1.0
    assert intervals["late"][0] > 0.7
    assert intervals["transposed"][1] < 0.5
    assert intervals["random"][1] < 0.5
