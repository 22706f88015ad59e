"""Which systems meet on which clip and on which side: a pure function of a seed.

Balance, whatever the numbers:

* every pair of systems is compared equally often, or once more or less;
* every clip is used equally often, or once more or less, and at most once for a pair;
* within a pair each system is on side A in half of the trials, or once more or less; over all its pairs too.

The order of the trials is that of their random ids.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.study import SILENCE, Assignment

REFERENCE = "ground_truth"
"""On both sides of the control ``same``, and on one of ``silence``."""


@dataclass(frozen=True)
class ClipName:
    """A clip and its song."""

    clip: str
    song: str


@dataclass(frozen=True)
class Draw:
    """The id of a study and what each of its trials compares, by trial id in sorted order."""

    study_id: str
    assignments: dict[str, Assignment]


def draw_trials(
    clips: Sequence[ClipName], systems: Sequence[str], trials: int, same: int, silence: int, seed: str
) -> Draw:
    """Draw a study.

    Args:
        clips: Those that every system has.
        systems: At least two, each once.
        trials: Comparisons of two systems; 0 for every pair on every clip.
        same: Controls with :data:`REFERENCE` on both sides.
        silence: Controls of the vocal alone against :data:`REFERENCE`.
        seed: Any text.

    Raises:
        RequestError: More trials than there are pairs and clips.
    """
    generator = random.Random(seed)
    everything = len(clips) * len(systems) * (len(systems) - 1) // 2
    if trials > everything:
        raise RequestError(
            f"study.trials: {len(systems)} systems and {len(clips)} clips make {everything} comparisons, "
            f"{trials} are asked for\nlower study.trials, or give more clips"
        )
    compared = _pairs(clips, systems, trials or everything, generator)
    compared += [
        Assignment(clip.clip, clip.song, "same", REFERENCE, REFERENCE) for clip in _spread(clips, same, generator)
    ]
    sides = _halves(silence, generator.random() < 0.5, generator)
    for clip, silent_first in zip(_spread(clips, silence, generator), sides, strict=True):
        a, b = (SILENCE, REFERENCE) if silent_first else (REFERENCE, SILENCE)
        compared.append(Assignment(clip.clip, clip.song, "silence", a, b))
    ids: set[str] = set()
    while len(ids) < len(compared):
        ids.add(f"{generator.getrandbits(48):012x}")
    order = sorted(ids)
    generator.shuffle(compared)
    return Draw(f"{generator.getrandbits(64):016x}", dict(zip(order, compared, strict=True)))


def _pairs(
    clips: Sequence[ClipName], systems: Sequence[str], trials: int, generator: random.Random
) -> list[Assignment]:
    pairs = list(itertools.combinations(generator.sample(list(systems), len(systems)), 2))
    generator.shuffle(pairs)
    counts = [trials // len(pairs) + (index < trials % len(pairs)) for index in range(len(pairs))]
    pairs = _oriented([pair for pair, count in zip(pairs, counts, strict=True) if count % 2], pairs)
    turns = itertools.cycle(generator.sample(list(clips), len(clips)))
    compared: list[Assignment] = []
    for (first, second), count in zip(pairs, counts, strict=True):
        # clips take turns over all pairs; `count` is at most their number, so none comes twice in a pair
        for first_on_a, clip in zip(_halves(count, True, generator), turns, strict=False):
            a, b = (first, second) if first_on_a else (second, first)
            compared.append(Assignment(clip.clip, clip.song, "pair", a, b))
    return compared


def _oriented(odd: Sequence[tuple[str, str]], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """``pairs``, those in ``odd`` turned so that each system comes first as often as second, or once more or less.

    The pairs are the edges of a graph. Trails through it enter a system as often as they leave it, except at their
    ends, and each system that has an odd number of edges is an end once.
    """
    left = [set(pair) for pair in odd]
    first_of: dict[frozenset[str], str] = {}
    while left:
        degree = Counter(name for pair in left for name in sorted(pair))
        here = next((name for name, edges in degree.items() if edges % 2), next(iter(degree)))
        while (edge := next((pair for pair in left if here in pair), None)) is not None:
            left.remove(edge)
            first_of[frozenset(edge)] = here
            (here,) = edge - {here}
    return [pair if first_of.get(frozenset(pair), pair[0]) == pair[0] else (pair[1], pair[0]) for pair in pairs]


def _halves(count: int, extra: bool, generator: random.Random) -> list[bool]:
    """``count`` truth values in random order, half of them true; of an odd number the odd one is ``extra``."""
    values = [True] * (count // 2) + [False] * (count // 2) + [extra] * (count % 2)
    generator.shuffle(values)
    return values


def _spread(clips: Sequence[ClipName], count: int, generator: random.Random) -> list[ClipName]:
    """``count`` clips, none a second time before all were taken once."""
    turns = generator.sample(list(clips), len(clips))
    return list(itertools.islice(itertools.cycle(turns), count))
