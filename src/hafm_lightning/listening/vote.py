"""A vote on one trial, and the failure of a judge to give one; both are checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.study import CRITERIA, Presentation

Choice = Literal["A", "B", "tie"]
"""Always in the study's sides, in whatever order they were played."""
LONGEST_NAME, LONGEST_NOTE = 200, 4000
"""Characters of a voter, and of a note or reason."""

T = TypeVar("T")


def _check_place(voter: str, trial: str, presentation: str) -> None:
    if not (isinstance(voter, str) and 0 < len(voter) <= LONGEST_NAME and voter.isprintable()):
        raise RequestError(f"voter {str(voter)[:40]!r}: expected 1 to {LONGEST_NAME} printable characters")
    if not (isinstance(trial, str) and 0 < len(trial) <= LONGEST_NAME and trial.isprintable()):
        raise RequestError(f"trial {str(trial)[:40]!r}: expected the id of a trial")
    if presentation not in get_args(Presentation):
        raise RequestError(f"presentation {str(presentation)[:40]!r}: expected AB or BA")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


@dataclass(frozen=True)
class Vote:
    """One answer.

    Attributes:
        voter: Random id of a listener, or ``judge:<name>``.
        trial: Id of the trial.
        presentation: The order in which the sides were played.
        choices: Criterion -> choice, in the study's sides.
        confidence: 1 to 5; None where it was not asked for.
        seconds: From the first play to the answer; None where it was not measured.
        note: A judge's reason.
    """

    voter: str
    trial: str
    presentation: Presentation
    choices: Mapping[str, Choice]
    confidence: float | None = None
    seconds: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _check_place(self.voter, self.trial, self.presentation)
        if not isinstance(self.choices, Mapping) or not self.choices or not set(self.choices) <= set(CRITERIA):
            raise RequestError(f"choices: expected one for each of {', '.join(CRITERIA)}")
        wrong = [str(choice)[:40] for choice in self.choices.values() if choice not in get_args(Choice)]
        if wrong:
            raise RequestError(f"choice {wrong[0]!r}: expected one of {', '.join(get_args(Choice))}")
        if self.confidence is not None and not (_is_number(self.confidence) and 1 <= self.confidence <= 5):
            raise RequestError(f"confidence: expected a number from 1 to 5, got {str(self.confidence)[:40]}")
        if self.seconds is not None and not (_is_number(self.seconds) and self.seconds >= 0):
            raise RequestError(f"seconds: expected a number of at least 0, got {str(self.seconds)[:40]}")
        if not isinstance(self.note, str) or len(self.note) > LONGEST_NOTE:
            raise RequestError(f"note: expected a text of at most {LONGEST_NOTE} characters")

    @classmethod
    def from_dict(cls, content: Any) -> Vote:
        """A vote from plain values; RequestError for missing, unknown or wrong fields."""
        return _from_dict(cls, content)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def same_answer(self, other: Vote) -> bool:
        """Whether another vote on this trial says the same; the measured time does not count."""
        return (dict(self.choices), self.confidence, self.note) == (
            dict(other.choices),
            other.confidence,
            other.note,
        )


@dataclass(frozen=True)
class Failure:
    """A trial on which a judge gave no vote.

    Attributes:
        voter: ``judge:<name>``.
        trial: Id of the trial.
        presentation: The order in which the sides were played.
        reason: What went wrong.
    """

    voter: str
    trial: str
    presentation: Presentation
    reason: str

    def __post_init__(self) -> None:
        _check_place(self.voter, self.trial, self.presentation)
        if not isinstance(self.reason, str) or not 0 < len(self.reason) <= LONGEST_NOTE:
            raise RequestError(f"reason: expected a text of 1 to {LONGEST_NOTE} characters")

    @classmethod
    def from_dict(cls, content: Any) -> Failure:
        """A failure from plain values; RequestError for missing, unknown or wrong fields."""
        return _from_dict(cls, content)


def _from_dict(kind: Callable[..., T], content: Any) -> T:
    if not isinstance(content, dict):
        raise RequestError("expected a JSON object of named fields")
    try:
        return kind(**content)
    except TypeError as error:
        reason = str(error).partition("() ")[2] or str(error)
        raise RequestError(f"wrong fields: {reason[:200]}") from error
