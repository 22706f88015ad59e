"""Studies, keys and votes in memory, for what needs no sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hafm_lightning.listening.study import CRITERIA, Assignment, Key, Study, Trial
from hafm_lightning.listening.vote import Vote


def made_study(trials: int) -> Study:
    """A study whose sounds do not exist."""
    names = [f"{index:012x}" for index in range(trials)]
    made = tuple(Trial(name, *("0" * 64,) * 3) for name in names)
    return Study("0123456789abcdef", "A study", "Which accompaniment fits?", CRITERIA, 3.0, 24_000, made, Path("none"))


def made_key(study: Study, systems: Sequence[str], pairs: Sequence[tuple[str, str, str]]) -> Key:
    """The key with ``(clip, system, system)`` for each trial; sides alternate."""
    assignments = {}
    for index, (trial, (clip, first, second)) in enumerate(zip(study.trials, pairs, strict=True)):
        a, b = (first, second) if index % 2 else (second, first)
        kind: Literal["pair", "same", "silence"]
        kind = "same" if a == b else "silence" if "silence" in (a, b) else "pair"
        assignments[trial.id] = Assignment(clip, clip, kind, a, b)
    return Key(study.study_id, "0" * 64, 0, tuple(systems), assignments, {})


def made_vote(voter: str, trial: str, side: Any, order: Any, confidence: float | None = None) -> Vote:
    """A vote with the same choice on every criterion."""
    return Vote(voter, trial, order, dict.fromkeys(CRITERIA, side), confidence, 4.0)
