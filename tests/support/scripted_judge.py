"""A judge with known preferences: it recognises the systems by their sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.audio import read_audio
from hafm_lightning.listening.judge.base import Answer, Failed, Opinion, Preference, Presented
from hafm_lightning.listening.study import CRITERIA, Key, Study


def systems_by_sound(study: Study, key: Key) -> dict[bytes, str]:
    """Samples of each mix -> the system that plays in it."""
    found = {}
    for trial in study.trials:
        assignment = key.assignments[trial.id]
        for name, system in ((trial.a, assignment.a), (trial.b, assignment.b)):
            found[samples_of(study.folder / name).tobytes()] = system
    return found


def samples_of(path: Path) -> Any:
    return np.asarray(read_audio(path, mono=True).samples[0], dtype=np.float32)


@dataclass
class ScriptedJudge:
    """Prefers, by each criterion, the system with the larger strength; counts what it is asked.

    Attributes:
        systems: Samples of a mix -> system.
        strengths: Criterion -> system -> strength.
        identity: Of the judge.
        before: Called with the number of questions so far before each answer; may return a failure.
    """

    systems: Mapping[bytes, str]
    strengths: Mapping[str, Mapping[str, float]]
    identity: str = "a" * 64
    before: Callable[[int], Failed | None] = lambda count: None
    asked: int = 0

    def load(self, device: Any) -> ScriptedJudge:
        return self

    def judge(self, trials: Sequence[Presented]) -> Iterator[Answer | Failed]:
        for trial in trials:
            self.asked += 1
            failed = self.before(self.asked)
            yield failed or Answer({criterion: self._opinion(trial, criterion) for criterion in CRITERIA})

    def _opinion(self, trial: Presented, criterion: str) -> Opinion:
        strength = self.strengths[criterion]
        first, second = (strength[self.systems[mix.tobytes()]] for mix in (trial.first, trial.second))
        choice: Preference = "tie" if first == second else "first" if first > second else "second"
        return Opinion(choice, 5.0 if criterion == "overall" else 1.0, f"{first} against {second}")


class AlwaysFirst(ScriptedJudge):
    """Prefers what is played first."""

    def _opinion(self, trial: Presented, criterion: str) -> Opinion:
        return Opinion("first", 3.0, "it came first")


STRENGTHS = {
    "rhythm": {"ground_truth": 3, "three_stages": 2, "random": 1, "silence": 0},
    "harmony": {"ground_truth": 2, "three_stages": 3, "random": 1, "silence": 0},
    "overall": {"ground_truth": 3, "three_stages": 2, "random": 1, "silence": 0},
}
