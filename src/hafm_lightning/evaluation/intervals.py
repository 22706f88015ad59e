"""Intervals: bootstrap for means and paired differences, jackknife for numbers of a whole set of clips.

A number without an interval cannot be compared with another. Clips of one song are not independent, so where the song
of each clip is given, whole songs are drawn or left out: the interval is one over songs.

* Means: the percentile bootstrap, seeded, so that a report comes out the same twice.
* Distances between sets (FAD, KD, APA): the delete-a-group jackknife. A bootstrap sample repeats rows, which lowers the
  rank of a covariance and shifts a Frechet distance upwards. The jackknife gives the spread over songs; the bias of
  a small n stays in the number and is not part of the interval.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapters 8, 11 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEVEL = 0.95
GROUPS = 20
"""The jackknife pools songs into at most this many groups."""


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
        mean: Mean of all values.
        low: Lower bound.
        high: Upper bound.
        level: Nominal share of such intervals that hold the true mean.
        n: Number of values.
        groups: Number of independent units that were drawn (songs, or values where no songs were given).
    """

    mean: float
    low: float
    high: float
    level: float
    n: int
    groups: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float | int]:
        """Plain values, for JSON."""
        return asdict(self)


def bootstrap_interval(
    values: npt.ArrayLike,
    seed: int = 0,
    level: float = LEVEL,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of ``values [n]`` with its bootstrap interval.

    Args:
        values: One number a clip; finite.
        seed: Of the resampling.
        level: Such as 0.95.
        groups: The song of each value; whole songs are drawn. Values are drawn one by one if None.
        resamples: Number of bootstrap samples.

    Returns:
        The interval; of no width for a single group, from which no spread can be estimated.

    Raises:
        ValueError: No values, NaN among them, a level outside 0..1, or another number of groups than of values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"expected at least one value in a flat list, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are NaN or infinite")
    if not 0 < level < 1:
        raise ValueError(f"the level must lie between 0 and 1, got {level}")
    if groups is not None and len(groups) != len(numbers):
        raise ValueError(f"{len(numbers)} values, but groups for {len(groups)}")
    names = list(range(len(numbers)) if groups is None else groups)
    group_of = {name: index for index, name in enumerate(dict.fromkeys(names))}
    owner = np.array([group_of[name] for name in names])
    sums = np.bincount(owner, weights=numbers)
    counts = np.bincount(owner)
    drawn = np.random.default_rng(seed).integers(len(group_of), size=(resamples, len(group_of)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(numbers.mean()), float(low), float(high), level, len(numbers), len(group_of))


def paired_difference_interval(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    seed: int = 0,
    level: float = LEVEL,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of ``first - second``, both ``[n]`` on the same clips, with its bootstrap interval.

    Raises:
        ValueError: As :func:`bootstrap_interval`, or the two differ in length.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equally many values, got shapes {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, seed, level, groups=groups, resamples=resamples)


@dataclass(frozen=True)
class SetInterval:
    """A number of a set of clips with its interval; ``low`` and ``high`` are None with fewer than 3 groups."""

    value: float
    low: float | None
    high: float | None
    groups: int


def jackknife_interval(
    statistic: Callable[[list[int]], float],
    songs: Sequence[Hashable],
    level: float = LEVEL,
    *,
    minimum: float = -math.inf,
) -> SetInterval:
    """Value of ``statistic`` on all clips, and its jackknife interval.

    Args:
        statistic: Indices of the remaining clips -> number.
        songs: The song of each clip; clips of one song are left out together.
        level: Such as 0.95.
        minimum: Least value that the number can have; the interval is cut there.
    """
    everything = list(range(len(songs)))
    value = statistic(everything)
    names = list(dict.fromkeys(songs))
    groups = min(GROUPS, len(names))
    if groups < 3:
        return SetInterval(value, None, None, groups)
    group_of = {name: index % groups for index, name in enumerate(names)}
    left_out = np.array(
        [statistic([index for index in everything if group_of[songs[index]] != group]) for group in range(groups)]
    )
    variance = (groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum())
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return SetInterval(value, max(minimum, value - half), value + half, groups)
