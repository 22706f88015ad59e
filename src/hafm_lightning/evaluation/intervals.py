"""Intervals at 95 %: bootstrap for means and paired differences, jackknife for numbers of a whole set of clips.

Clips of one song are not independent, so where the song of each clip is given, whole songs are drawn or left out: the
interval is one over songs. Distances between sets (FAD, KD, APA) take the jackknife: a bootstrap sample repeats rows,
which lowers the rank of a covariance and shifts a Frechet distance upwards. The bias of a small set stays in the number
and is not part of the interval.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapters 8, 11 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEVEL = 0.95
GROUPS = 20
"""The jackknife pools songs into at most this many groups."""


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


def bootstrap_interval(values: npt.ArrayLike, seed: int = 0, *, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of ``values [n]`` with its percentile bootstrap interval.

    Args:
        values: One number a clip; finite.
        seed: Of the resampling: equal seeds give equal intervals.
        groups: The song of each value; whole songs are drawn. Values are drawn one by one if None.

    Returns:
        The interval; of no width for a single group, from which no spread can be estimated.

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
    sums = np.bincount(owner, weights=numbers)
    counts = np.bincount(owner)
    drawn = np.random.default_rng(seed).integers(len(group_of), size=(RESAMPLES, len(group_of)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_difference_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, seed: int = 0, *, groups: Sequence[Hashable] | None = None
) -> Interval:
    """Mean of ``first - second``, both ``[n]`` on the same clips, with its bootstrap interval.

    Raises:
        ValueError: As :func:`bootstrap_interval`, or the two differ in length.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equally many values, got shapes {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, seed, groups=groups)


@dataclass(frozen=True)
class SetInterval:
    """A number of a set of clips and the bounds of its interval, which are None with fewer than 3 songs."""

    value: float
    low: float | None
    high: float | None


def jackknife_interval(
    statistic: Callable[[list[int]], float], songs: Sequence[Hashable], *, minimum: float = -math.inf
) -> SetInterval:
    """Value of ``statistic`` on all clips, and its delete-a-group jackknife interval.

    Args:
        statistic: Indices of the remaining clips -> number.
        songs: The song of each clip; clips of one song are left out together.
        minimum: Least value that the number can have; the interval is cut there.
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
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance)
    return SetInterval(value, max(minimum, value - half), value + half)
