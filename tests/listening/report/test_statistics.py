"""Arithmetic of preference tests against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from hafm_lightning.listening.report.statistics import (
    Outcomes,
    bradley_terry,
    fewest,
    interval_of,
    krippendorff_alpha,
    resampled,
    share_of,
)


@pytest.mark.parametrize(("wins", "n"), [(17, 33), (19, 33), (18, 33), (0, 5), (5, 5), (1, 1), (60, 99)])
def test_a_share_has_the_interval_of_wilsons_formula_and_the_exact_p(wins: int, n: int) -> None:
    share = share_of(wins, n)
    z, p = 1.959963984540054, wins / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (share.low, share.high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    exact = sum(chance for chance in chances if chance <= chances[wins] * (1 + 1e-9))
    assert share.p == pytest.approx(min(exact, 1.0), rel=1e-9)


def test_no_decided_trial_is_no_evidence() -> None:
    share = share_of(0, 0)
    assert share.share is None
    assert (share.low, share.high, share.p) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(("wins", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(wins: int, n: int) -> None:
    with pytest.raises(ValueError, match="wins"):
        share_of(wins, n)


def test_bradley_terry_maximises_the_likelihood() -> None:
    wins = np.array([[0, 17, 19.5, 3], [16, 0, 18, 9], [14, 15, 0, 8], [7, 2, 1, 0]], dtype=float)

    def loss(free: np.ndarray) -> float:
        log = np.concatenate([[0.0], free])
        terms = log[:, None] - np.logaddexp(log[:, None], log[None, :])
        return -float((wins * terms).sum())

    best = np.exp(np.concatenate([[0.0], minimize(loss, np.zeros(3), method="BFGS", tol=1e-12).x]))
    assert bradley_terry(wins) == pytest.approx(best / best.sum(), abs=1e-5)


def test_bradley_terry_of_two_systems_is_the_share_of_wins() -> None:
    assert bradley_terry([[0, 30], [10, 0]]) == pytest.approx([0.75, 0.25])


def test_a_system_that_won_everything_gets_a_finite_strength() -> None:
    strengths = bradley_terry([[0, 5, 5], [0, 0, 3], [0, 2, 0]])
    assert np.isfinite(strengths).all()
    assert strengths[0] == strengths.max() < 1


def test_systems_that_never_met_have_no_common_scale() -> None:
    with pytest.raises(ValueError, match="never compared"):
        bradley_terry([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])


def test_alpha_of_krippendorffs_published_example() -> None:
    # Four observers and twelve units with missing ratings (Krippendorff 2011, example C): nominal alpha 0.743.
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[rating for rating in unit if rating is not None] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_one_for_agreement_and_about_zero_for_chance() -> None:
    assert krippendorff_alpha([["A", "A", "A"], ["B", "B"]]) == 1.0
    random = np.random.default_rng(0).choice(["A", "B", "tie"], size=(2000, 3)).tolist()
    assert krippendorff_alpha(random) == pytest.approx(0.0, abs=0.03)
    assert krippendorff_alpha([["A"], ["B"]]) is None
    assert krippendorff_alpha([["A", "A"], ["A", "A"]]) is None


def test_the_bootstrap_draws_whole_clips_and_whole_listeners() -> None:
    clips, listeners = ["x", "x", "y", "y"], ["p", "q", "p", "q"]
    for weights in resampled([clips, listeners], resamples=200, seed=1):
        grid = weights.reshape(2, 2)
        # A weight is (times the clip was drawn) x (times the listener was drawn): a matrix of rank one.
        assert grid[0, 0] * grid[1, 1] == grid[0, 1] * grid[1, 0]
        assert grid.sum() == 4


def test_the_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(3).normal(size=400)
    means = [
        float((weights * values).sum() / weights.sum()) for weights in resampled([range(400), ["one"] * 400], 2000)
    ]
    low, high = interval_of(means)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@pytest.mark.parametrize("songs", [6, 12])
def test_the_interval_of_few_songs_holds_as_often_as_it_says(songs: int) -> None:
    """Plain percentiles held the mean of 6 songs in 86 % of cases."""
    generator = np.random.default_rng(songs)
    held = {None: 0, songs: 0}
    trials = 800
    for _ in range(trials):
        values = generator.normal(size=songs)
        means = values[generator.integers(songs, size=(1000, songs))].mean(axis=1)
        for drawn in held:
            low, high = interval_of(means, drawn)
            held[drawn] += low <= 0 <= high
    assert held[songs] / trials == pytest.approx(0.95, abs=0.03)
    assert held[None] < held[songs]


def test_the_smaller_of_songs_and_listeners_counts() -> None:
    assert fewest([["a", "b", "c"], ["one", "two", "two"]]) == 2
    assert fewest([["a", "b", "c"], ["one"] * 3]) == 3
    assert fewest([["a"], ["one"]]) is None


def test_wins_count_weights_and_half_ties() -> None:
    outcomes = Outcomes.of(["a", "b", "c"], [(("a", "b"), "a"), (("b", "a"), "tie"), (("c", "b"), "b")])
    weights = np.array([2, 1, 3])
    assert outcomes.wins(weights, ties=True).tolist() == [[0, 2.5, 0], [0.5, 0, 3], [0, 0, 0]]
    assert outcomes.wins(weights, ties=False).tolist() == [[0, 2, 0], [0, 0, 3], [0, 0, 0]]
