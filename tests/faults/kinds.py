"""All tries, kind after kind; the short form has some of each."""

from __future__ import annotations

from pathlib import Path

from moments import moment_tries
from payloads import payload_tries
from resumed_settings import setting_tries
from sounds import sound_tries
from surroundings import surroundings_tries
from tries import Try, file_tries

WHOLE_MOMENTS = 12
SHORT = {"wrong fields": 4, "damaged bytes": 4, "odd sounds": 3, "several at once": 1}
SHORT_OTHERS = 2
"""Tries of a kind in the short form."""


def all_tries(workshop: Path, seed: int, *, short: bool = False, every: bool = False) -> list[Try]:
    """The tries of a seed; ``short``: a few of each kind; ``every``: also the damages that the seed does not draw."""
    if short:
        return shortened(all_tries(workshop, seed))
    return [
        *moment_tries(seed, WHOLE_MOMENTS),
        *file_tries(workshop, seed, 1e6 if every else 1.0),
        *payload_tries(),
        *sound_tries(),
        *surroundings_tries(),
        *setting_tries(),
    ]


def shortened(tries: list[Try]) -> list[Try]:
    """A few tries of each kind, spread evenly over its works, files and damages."""
    chosen = []
    for kind in dict.fromkeys(it.kind for it in tries):
        of_kind = [it for it in tries if it.kind == kind]
        most = SHORT.get(kind, SHORT_OTHERS)
        chosen += [of_kind[index * len(of_kind) // most] for index in range(min(most, len(of_kind)))]
    return chosen
