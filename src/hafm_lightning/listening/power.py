"""How many trials and listeners a question needs.

The question: is system X preferred to system Y, or does a judge tell them apart? Of the votes that are no ties a share
goes to X; the exact two-sided binomial test compares it with one half.

Choices:

* Power is the exact binomial one. It saws: one more trial may lower it, since only whole votes can be asked for. The
  number that is given is the least from which on the power never falls below the one that is wanted, which is a few
  trials more than the usual normal approximation (:func:`approximate_trials`) says.
* Ties are left out by the test, so their number is drawn too: the power is the mean over how many votes decide.
* Votes on one clip resemble each other, and so do those of one listener. By the design effect (Kish, *Survey
  Sampling*, 1965, chapter 5, here for two crossed groupings) ``n`` votes are worth
  ``n / (1 + (l - 1) r_l + (c - 1) r_c)`` independent ones, with ``l`` votes a listener, ``c`` votes a clip and the
  correlations within both. More listeners on the same clips are never worth more than ``clips / r_c`` votes: beyond
  that only more clips help.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from hafm_lightning.errors import RequestError

MOST_TRIALS = 20_000
"""Questions that need more are refused."""
LEAST_ALPHA = 1e-9
"""Below this, normal quantiles lose their digits."""
MOST_LISTENERS = 1 << 20
_EXTRA = 1.25
"""Trials are tried up to this multiple of the approximation: the teeth of the saw are smaller than what is gained."""
_DEVIATIONS = 10.0
"""Numbers of ties further from their mean than this many standard deviations are left out."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """What a study is to show.

    Attributes:
        share: Share of the deciding votes that truly goes to the better system, above one half.
        power: Probability with which the study shows it.
        alpha: Level of the two-sided test.
        ties: Share of votes that are ties.
    """

    share: float
    power: float = 0.8
    alpha: float = 0.05
    ties: float = 0.0

    def __post_init__(self) -> None:
        if not 0.5 < self.share < 1:
            raise RequestError(f"the share must lie above 0.5 and below 1, got {self.share:g}")
        if not LEAST_ALPHA <= self.alpha < 1 or not self.alpha < self.power < 1:
            raise RequestError(
                f"need {LEAST_ALPHA:g} <= alpha < power < 1, got alpha {self.alpha:g} and power {self.power:g}"
            )
        if not 0 <= self.ties < 1:
            raise RequestError(f"the share of ties must be at least 0 and below 1, got {self.ties:g}")


@dataclass(frozen=True)
class Panel:
    """Who hears what.

    Attributes:
        clips: Clips on which the two systems are compared.
        each: Of these, how many a listener hears; 0 for all.
        clip_correlation: Correlation of two votes on one clip.
        listener_correlation: Correlation of two votes of one listener.
    """

    clips: int
    each: int = 0
    clip_correlation: float = 0.0
    listener_correlation: float = 0.0

    def __post_init__(self) -> None:
        if self.clips < 1 or not 0 <= self.each <= self.clips:
            raise RequestError(f"a listener hears 1 to {self.clips} of {self.clips} clips, got {self.each}")
        for name in ("clip_correlation", "listener_correlation"):
            if not 0 <= getattr(self, name) < 1:
                raise RequestError(
                    f"{name.replace('_', ' ')} must be at least 0 and below 1, got {getattr(self, name)}"
                )

    @property
    def votes_each(self) -> int:
        """Votes of a listener."""
        return self.each or self.clips

    def design_effect(self, listeners: int) -> float:
        """By how much more votes are needed than if they were independent."""
        a_clip = listeners * self.votes_each / self.clips
        within_listener = (self.votes_each - 1) * self.listener_correlation
        return 1 + within_listener + max(0.0, a_clip - 1) * self.clip_correlation

    def worth(self, listeners: int) -> float:
        """Independent votes that those of ``listeners`` are worth."""
        return listeners * self.votes_each / self.design_effect(listeners)

    def listeners_for(self, trials: int) -> int | None:
        """The fewest listeners whose votes are worth ``trials``; None where no number suffices."""
        if self.clip_correlation and trials >= self.clips / self.clip_correlation:
            return None
        low, high = 0, 1
        while self.worth(high) < trials:
            low, high = high, 2 * high
            if high > MOST_LISTENERS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.worth(middle) >= trials else (middle, high)
        return high

    def clips_for(self, trials: int) -> int:
        """The least number of clips, all heard by everybody, with which some number of listeners suffices."""
        return math.floor(trials * self.clip_correlation) + 1


def power_of(trials: int, question: Question) -> float:
    """Exact power of the two-sided binomial test with ``trials`` votes, ties among them."""
    powers = _powers(np.arange(trials + 1), question.share, question.alpha)
    return _over_ties(trials, powers, question.ties)


def trials_for(question: Question) -> int:
    """The least number of votes from which on the exact power is at least ``question.power``.

    Raises:
        RequestError: More than :data:`MOST_TRIALS` are needed.
    """
    guess = approximate_trials(question)
    if guess > MOST_TRIALS:
        raise RequestError(
            f"a share of {question.share:g} needs about {guess} trials; ask for a larger effect, or for less power"
        )
    last = math.ceil(_EXTRA * guess) + 20
    powers = _powers(np.arange(last + 1), question.share, question.alpha)
    too_few = [trials for trials in range(last + 1) if _over_ties(trials, powers, question.ties) < question.power]
    return too_few[-1] + 1


def approximate_trials(question: Question) -> int:
    """The same by the usual normal approximation, as a check."""
    normal = NormalDist()
    spread = math.sqrt(question.share * (1 - question.share))
    needed = normal.inv_cdf(1 - question.alpha / 2) / 2 + normal.inv_cdf(question.power) * spread
    return math.ceil((needed / (question.share - 0.5)) ** 2 / (1 - question.ties))


def detectable_share(trials: int, question: Question) -> float | None:
    """The least true share, to .001, that ``trials`` votes show with the wanted power; None if not even .999."""

    def power(thousandths: int) -> float:
        return power_of(trials, replace(question, share=thousandths / 1000))

    shares = range(501, 1000)
    index = bisect_left(shares, question.power, key=power)  # the power grows with the share
    return None if index == len(shares) else shares[index] / 1000


def _powers(trials: npt.NDArray[np.int64], share: float, alpha: float) -> Floats:
    """Power of the test for each number of deciding votes ``[n]``."""
    from scipy.stats import binom

    wins = binom.isf(alpha / 2, trials, 0.5) + 1  # the fewest that are significant, up to rounding
    wins = np.where(binom.sf(wins - 2, trials, 0.5) <= alpha / 2, wins - 1, wins)
    wins = np.where(binom.sf(wins - 1, trials, 0.5) > alpha / 2, wins + 1, wins)
    powers = binom.sf(wins - 1, trials, share) + binom.cdf(trials - wins, trials, share)
    return np.asarray(np.where(wins <= trials, powers, 0.0), dtype=np.float64)


def _over_ties(trials: int, powers: Floats, ties: float) -> float:
    """The mean of ``powers``, by number of deciding votes, over how many of ``trials`` votes are ties."""
    if not ties:
        return float(powers[trials])
    from scipy.stats import binom

    middle, reach = trials * (1 - ties), _DEVIATIONS * math.sqrt(trials * ties * (1 - ties)) + 1
    deciding = np.arange(max(0, math.floor(middle - reach)), min(trials, math.ceil(middle + reach)) + 1)
    return float(binom.pmf(deciding, trials, 1 - ties) @ powers[deciding])
