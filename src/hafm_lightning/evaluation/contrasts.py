"""Two rows of a card compared in one column: their difference, and a row's place between two others, with intervals.

Both are paired: the same clips stand on both sides, so that what makes a clip easy or hard falls out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.intervals import Interval, SetInterval, jackknife_interval, mean_interval

Scores = npt.NDArray[np.float64]
SetScore = Callable[[list[int]], float]
"""Indices of clips -> a number of these clips together."""
LEAST_GAP = 1e-9
"""A place between two rows that differ by less has no meaning."""


@dataclass(frozen=True)
class Contrasts:
    """What is known of every clip or set, by column key and system.

    Attributes:
        songs: The song of each clip.
        clips: Column -> system -> score of each clip ``[n]``, larger is better.
        sets: Column -> system -> score of any set of clips.
        failed: System -> indices of the clips that failed.
    """

    songs: Sequence[str]
    clips: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    sets: Mapping[str, Mapping[str, SetScore]] = field(default_factory=dict)
    failed: Mapping[str, Set[int]] = field(default_factory=dict)

    def difference(self, key: str, system: str, other: str) -> Interval | None:
        """Column ``key`` of ``system`` minus that of ``other``; None where one is absent or there are too few songs.

        A clip at which ``other`` failed says nothing in favour of ``system``: its difference counts as 0 at most.
        """
        values = self.clips.get(key, {})
        if system in values and other in values and len(set(self.songs)) > 1:
            return mean_interval(self.gaps(key, system, other), groups=self.songs)
        scores = self.sets.get(key, {})
        if system in scores and other in scores:
            first, second = scores[system], scores[other]
            found = jackknife_interval(lambda chosen: first(chosen) - second(chosen), self.songs)
            if found.low is not None and found.high is not None:
                return Interval(found.value, found.low, found.high)
        return None

    def gaps(self, key: str, system: str, other: str) -> Scores:
        """The difference at each clip ``[n]``, at most 0 where ``other`` failed."""
        values = self.clips[key]
        gaps = np.asarray(values[system] - values[other])
        lost = sorted(self.failed.get(other, ()))
        gaps[lost] = np.minimum(gaps[lost], 0.0)
        return gaps

    def position(self, key: str, system: str, low: str, high: str) -> SetInterval | None:
        """Where ``system`` lies between the rows ``low`` (0) and ``high`` (1); None where one is absent."""
        scores: Mapping[str, SetScore] = self.sets.get(key, {})
        if key in self.clips:
            scores = {name: _mean_of(values) for name, values in self.clips[key].items()}
        if not {system, low, high} <= set(scores):
            return None

        def place(chosen: list[int]) -> float:
            bottom = scores[low](chosen)
            gap = scores[high](chosen) - bottom
            return (scores[system](chosen) - bottom) / (gap if abs(gap) > LEAST_GAP else LEAST_GAP)

        return jackknife_interval(place, self.songs)


def _mean_of(values: Scores) -> SetScore:
    return lambda chosen: float(values[chosen].mean())
