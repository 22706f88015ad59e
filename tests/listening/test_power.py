"""Sample sizes against the binomial distribution written out, simulation, and the numbers of textbooks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.power import (
    Panel,
    Question,
    approximate_trials,
    detectable_share,
    power_of,
    trials_for,
)


def binomial(n: int, share: float) -> list[float]:
    return [math.comb(n, wins) * share**wins * (1 - share) ** (n - wins) for wins in range(n + 1)]


def exact_power(n: int, share: float, alpha: float = 0.05) -> float:
    """Outcome by outcome: the two-sided p is twice the smaller tail."""
    even, true = binomial(n, 0.5), binomial(n, share)
    return sum(true[wins] for wins in range(n + 1) if 2 * min(sum(even[: wins + 1]), sum(even[wins:])) <= alpha)


@pytest.mark.parametrize("share", [0.55, 0.65, 0.8, 0.95])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_the_power_is_that_of_the_outcomes_added_one_by_one(share: float, alpha: float) -> None:
    for n in (1, 2, 5, 6, 7, 20, 33, 99, 150):
        assert power_of(n, Question(share, alpha=alpha)) == pytest.approx(exact_power(n, share, alpha), abs=1e-9)


@pytest.mark.parametrize(("share", "approximate"), [(0.65, 85), (0.6, 194), (0.55, 783)])
def test_trials_for_80_percent_power(share: float, approximate: int) -> None:
    """The approximation gives 84.8, 193.8 and 782.5; the exact test needs a little more."""
    question = Question(share)
    assert approximate_trials(question) == approximate
    trials = trials_for(question)
    assert approximate <= trials <= 1.1 * approximate + 5
    assert exact_power(trials - 1, share) < 0.8
    assert all(power_of(n, question) >= 0.8 for n in range(trials, 2 * trials))


def test_the_papers_trials_show_a_share_of_65_percent_and_not_of_60() -> None:
    assert power_of(33, Question(0.6)) < 0.25
    assert power_of(99, Question(0.65)) > 0.8 > power_of(99, Question(0.6))
    share = detectable_share(33, Question(0.6))
    assert share is not None
    assert exact_power(33, share) >= 0.8 > exact_power(33, share - 0.001)
    assert detectable_share(3, Question(0.6)) is None


def test_ties_cost_their_share_of_the_trials() -> None:
    generator = np.random.default_rng(0)
    question = Question(0.7, ties=0.3)
    trials = trials_for(question)
    assert trials == pytest.approx(trials_for(Question(0.7)) / 0.7, rel=0.1)
    deciding = generator.binomial(trials, 0.7, 100_000)
    powers = np.array([exact_power(n, 0.7) for n in range(trials + 1)])
    assert power_of(trials, question) == pytest.approx(powers[deciding].mean(), abs=0.003)
    assert power_of(trials - 5, question) < 0.8 <= power_of(trials, question)


def test_the_design_effect_is_the_variance_of_crossed_votes() -> None:
    """Votes with a part of the listener and a part of the clip: the variance of their mean, simulated."""
    panel = Panel(12, 0, clip_correlation=0.2, listener_correlation=0.1)
    generator, listeners, draws = np.random.default_rng(1), 7, 40_000
    parts = (
        math.sqrt(0.1) * generator.standard_normal((draws, listeners, 1)),
        math.sqrt(0.2) * generator.standard_normal((draws, 1, 12)),
        math.sqrt(0.7) * generator.standard_normal((draws, listeners, 12)),
    )
    means = (parts[0] + parts[1] + parts[2]).mean(axis=(1, 2))
    assert panel.design_effect(listeners) == pytest.approx(means.var() * listeners * 12, rel=0.03)
    assert panel.worth(listeners) == pytest.approx(1 / means.var(), rel=0.03)


def test_listeners_for_a_question() -> None:
    assert Panel(33).listeners_for(85) == 3  # 3 x 33 independent votes
    assert Panel(33, 10).listeners_for(85) == 9
    panel = Panel(33, 0, clip_correlation=0.1, listener_correlation=0.05)
    listeners = panel.listeners_for(85)
    assert listeners is not None
    assert panel.worth(listeners) >= 85 > panel.worth(listeners - 1)
    assert panel.listeners_for(330) is None  # 33 / 0.1
    assert panel.listeners_for(329) is not None
    assert panel.clips_for(330) == 34
    assert Panel(34, 0, 0.1, 0.05).listeners_for(330) is not None


@pytest.mark.parametrize(
    "values",
    [(0.5,), (1.0,), (float("nan"),), (0.6, 0.8, 0.0), (0.6, 0.8, 1.0), (0.6, 0.04), (0.6, 1.0), (0.6, 0.8, 0.05, 1.0)],
)
def test_impossible_questions_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(RequestError):
        Question(*values)


@pytest.mark.parametrize("values", [(0,), (5, 6), (5, -1), (5, 0, 1.0), (5, 0, 0.1, -0.1), (5, 0, float("nan"))])
def test_impossible_panels_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(RequestError):
        Panel(*values)  # type: ignore[arg-type]


def test_a_question_that_needs_too_many_trials_is_refused() -> None:
    with pytest.raises(RequestError, match="needs about 196"):
        trials_for(Question(0.501))
