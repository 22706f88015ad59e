"""Intervals at 95 %: t without skewness for means and paired differences, jackknife for numbers of a set of clips.

Clips of one song are not independent, so where the song of each clip is given, the interval is one over songs.

* *Means.* Student's t with n - 1 degrees of freedom over songs, whose statistic is first freed of its skewness by
  Hall's cubic transformation. The percentile bootstrap holds the true mean of 6 songs in 86 % of cases (normal scores)
  or 82 % (exponential ones) where it says 95 %; this interval in 95 % and 93 %. It draws nothing.
* *Distances between sets* (FAD, KD, APA) take the delete-a-group jackknife, with Student's t for its few groups: a
  bootstrap sample repeats rows, which lowers the rank of a covariance and shifts a Frechet distance upwards. The bias
  of a small set stays in the number and is not part of the interval.

Sources: Hall, "On the removal of skewness by transformation", J. R. Statist. Soc. B 54 (1992); Efron and Tibshirani,
*An Introduction to the Bootstrap* (1993), chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
GROUPS = 20
"""The jackknife pools songs into at most this many groups."""
FEW_SONGS = 20
"""With fewer songs the card says that an interval rests on few."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@lru_cache(maxsize=256)
def t_quantile(level: float, degrees: int) -> float:
    """The two-sided quantile of Student's t: 12.7 for 95 % and one degree of freedom, 1.96 for very many."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def mean_interval(
    values: npt.ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Mean of ``values [n]`` with its interval.

    Args:
        values: One number a clip; finite.
        groups: The song of each value, over which the interval is; each value is one of its own if None. A song with
            more clips weighs more.
        bounds: Least and greatest value that the mean can have; the interval is cut there.

    Returns:
        The interval; of no width for a single group, or for equal ones, from which no spread can be estimated.

    Raises:
        ValueError: No values, NaN or infinity among them, or another number of groups than of values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"expected at least one value in a flat list, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are NaN or infinite")
    names = list(range(len(numbers)) if groups is None else groups)
    if len(names) != len(numbers):
        raise ValueError(f"{len(numbers)} values, but groups for {len(names)}")
    group_of = {name: index for index, name in enumerate(dict.fromkeys(names))}
    owner = np.array([group_of[name] for name in names])
    sums, counts = np.bincount(owner, weights=numbers), np.bincount(owner)
    mean = float(numbers.mean())
    # what each song adds to the mean, as its deviation: the songs' means minus the mean where all have as many clips
    below, above = _t_bounds((sums - mean * counts) / counts.mean())
    return Interval(mean, max(bounds[0], mean - below), min(bounds[1], mean + above))


def _t_bounds(deviations: Numbers) -> tuple[float, float]:
    """How far the interval reaches below and above the mean, from ``n`` deviations whose mean is zero."""
    count, spread = len(deviations), float(np.sqrt(np.square(deviations).mean()))
    if count < 2 or spread <= 1e-12 * max(1.0, float(np.abs(deviations).max())):
        return 0.0, 0.0
    error = spread / math.sqrt(count - 1)  # standard error of the mean
    skew = float((deviations**3).mean()) / spread**3 / math.sqrt(count)
    quantile = t_quantile(LEVEL, count - 1)
    return error * _without_skewness(quantile, skew), -error * _without_skewness(-quantile, skew)


def _without_skewness(quantile: float, skew: float) -> float:
    """The value of the t statistic whose transform is ``quantile``: Hall's g of its third section, inverted."""
    if abs(skew) < 1e-6:
        return quantile
    return 3 / skew * (float(np.cbrt(1 + skew * (quantile - skew / 6))) - 1)


def paired_difference_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, *, groups: Sequence[Hashable] | None = None
) -> Interval:
    """Mean of ``first - second``, both ``[n]`` on the same clips, with its interval.

    Raises:
        ValueError: As :func:`mean_interval`, or the two differ in length.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equally many values, got shapes {a.shape} and {b.shape}")
    return mean_interval(a - b, groups=groups)


def bootstrap_interval(values: npt.ArrayLike, seed: int = 0, *, groups: Sequence[Hashable] | None = None) -> Interval:
    """The name of :func:`mean_interval` while it drew samples, kept for programs that call it; no seed matters now."""
    return mean_interval(values, groups=groups)


@dataclass(frozen=True)
class SetInterval:
    """A number of a set of clips and the bounds of its interval, which are None with fewer than 3 songs."""

    value: float
    low: float | None
    high: float | None


def jackknife_interval(
    statistic: Callable[[list[int]], float],
    songs: Sequence[Hashable],
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> SetInterval:
    """Value of ``statistic`` on all clips, and its delete-a-group jackknife interval.

    Args:
        statistic: Indices of the remaining clips -> number.
        songs: The song of each clip; clips of one song are left out together.
        minimum: Least value that the number can have; the interval is cut there.
        maximum: Greatest value.
    """
    value = statistic(list(range(len(songs))))
    names = list(dict.fromkeys(songs))
    groups = min(GROUPS, len(names))
    if groups < 3:
        return SetInterval(value, None, None)
    group_of = {name: index % groups for index, name in enumerate(names)}
    left_out = np.array(
        [statistic([index for index, song in enumerate(songs) if group_of[song] != group]) for group in range(groups)]
    )
    variance = (groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum())
    half = t_quantile(LEVEL, groups - 1) * math.sqrt(variance)
    return SetInterval(value, max(minimum, value - half), min(maximum, value + half))
