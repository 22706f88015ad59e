"""Bootstrap intervals against simulation and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hafm_lightning.evaluation.intervals import bootstrap_interval, jackknife_interval, paired_difference_interval


def test_the_interval_holds_the_true_mean_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("hafm_lightning.evaluation.intervals.RESAMPLES", 1000)
    draw = np.random.default_rng(0)
    sets = draw.exponential(2.0, (300, 40))
    intervals = [bootstrap_interval(values, seed=i) for i, values in enumerate(sets)]
    held = np.mean([interval.low <= 2.0 <= interval.high for interval in intervals])
    assert 0.88 < held < 0.98


def test_width_follows_the_standard_error(monkeypatch):
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)
    monkeypatch.setattr("hafm_lightning.evaluation.intervals.LEVEL", 0.5)
    narrower = bootstrap_interval(values)
    assert (narrower.high - narrower.low) / 2 == pytest.approx(0.674 * values.std() / 20, rel=0.08)


def test_clips_of_one_song_count_as_one():
    songs = np.random.default_rng(2).normal(0.0, 1.0, 30)
    repeated, names = np.repeat(songs, 10), np.repeat(np.arange(30), 10).tolist()
    by_song = bootstrap_interval(repeated, seed=3, groups=names)
    assert (by_song.low, by_song.high) == pytest.approx(
        (bootstrap_interval(songs, seed=3).low, bootstrap_interval(songs, seed=3).high)
    )
    as_if_independent = bootstrap_interval(repeated, seed=3)
    assert by_song.high - by_song.low > 2.5 * (as_if_independent.high - as_if_independent.low)


def test_songs_with_more_clips_weigh_more():
    assert bootstrap_interval([0.0, 0.0, 0.0, 4.0], groups=["a", "a", "a", "b"]).mean == 1.0


def test_pairing_removes_what_both_sides_share():
    draw = np.random.default_rng(4)
    song = draw.normal(0.0, 10.0, 50)
    better = song + 1.0 + draw.normal(0.0, 0.5, 50)
    assert paired_difference_interval(better, song).excludes_zero
    assert paired_difference_interval(song, better).high < 0
    assert not bootstrap_interval(song - song.mean()).excludes_zero


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(5).normal(size=30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    single = bootstrap_interval([0.3])
    assert (single.low, single.mean, single.high) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([], {}, "at least one"),
        ([1.0, np.nan], {}, "1 of 2 values"),
        ([1.0, 2.0], {"groups": ["a"]}, "groups for 1"),
    ],
)
def test_what_has_no_interval_is_refused(values, options, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_interval(values, **options)
    with pytest.raises(ValueError, match="equally many"):
        paired_difference_interval([1.0, 2.0], [1.0])


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).standard_normal(15)
    found = jackknife_interval(lambda kept: float(values[kept].mean()), list(range(15)))
    half = 1.959964 * values.std(ddof=1) / math.sqrt(15)
    assert found.value == pytest.approx(values.mean())
    assert found.high is not None
    assert found.high - found.value == pytest.approx(half, rel=1e-6)
    assert jackknife_interval(lambda kept: 1.0, ["a", "a", "b"]).low is None
