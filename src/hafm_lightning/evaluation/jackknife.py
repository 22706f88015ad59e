"""Intervals for numbers that belong to a whole set of clips (FAD, KD, APA), by the delete-a-group jackknife.

A mean over clips is bootstrapped. A Frechet distance must not be: a bootstrap sample repeats rows, which lowers the
rank of its covariance and shifts the distance upwards. The jackknife leaves groups of clips out instead. What it gives
is the spread from which clips were drawn; the bias of a small n is in the number itself, and not in the interval.

Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

GROUPS = 20
"""Songs are pooled into at most so many groups."""


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
    level: float = 0.95,
    *,
    minimum: float = -math.inf,
) -> SetInterval:
    """Value of ``statistic`` on all clips, and its jackknife interval.

    Args:
        statistic: From the indices of the clips that are kept, to a number.
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
    group_of = {name: place % groups for place, name in enumerate(names)}
    left_out = np.array(
        [statistic([index for index in everything if group_of[songs[index]] != group]) for group in range(groups)]
    )
    variance = (groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum())
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return SetInterval(value, max(minimum, value - half), value + half, groups)
