"""Suggestions for a misspelt name: names that differ in case and dashes, begin with it, or are similar."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

SHORTEST = 3
"""Letters from which on the beginning of a name suggests the name."""
CLEAR_LEAD = 0.1
"""Names whose similarity is this far below the best one's are not suggested beside it."""


def nearest(word: str, known: Sequence[str]) -> list[str]:
    """At most three known names that ``word`` may mean; one if it is much more similar than the others.

    >>> nearest("evalute", ["fit", "evaluate", "validate"])
    ['evaluate']
    """

    def bare(text: str) -> str:
        return text.replace("-", "").replace("_", "").lower()

    same = [name for name in known if bare(name) == bare(word)]
    if same:
        return same[:3]
    near = [name for name in known if len(word) >= SHORTEST and bare(name).startswith(bare(word))]
    near = near or difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    scores = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in near}
    best = max(scores.values(), default=0.0)
    return [name for name in sorted(near, key=lambda name: -scores[name]) if scores[name] > best - CLEAR_LEAD][:3]


def did_you_mean(names: Sequence[str]) -> str:
    """A question with all names."""
    return f"did you mean {' or '.join(map(repr, names))}?"


def guess(word: str, known: Sequence[str]) -> str:
    """A line with the nearest known names, or with all of them when none is near."""
    near = nearest(word, known)
    if near:
        return did_you_mean(near)
    return f"known here: {', '.join(sorted(known)[:20])}" if known else "see --help for the keys that are known"
