"""What a judge is: sounds in, answers out. A judge knows neither systems nor sides, only what was played first.

Source of the criteria and of the confidence: HAFM, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.listening.study import Presentation
from hafm_lightning.listening.vote import LONGEST_NOTE, Choice, Vote

Samples = npt.NDArray[np.float32]
T = TypeVar("T")
Preference = Literal["first", "second", "tie"]

JUDGE_PREFIX = "judge:"
"""Start of the names of judges among the voters."""
LOWEST_CONFIDENCE, HIGHEST_CONFIDENCE = 1.0, 5.0
TIE_SHARE = 0.01
"""Differences up to this share of the scale are ties: files with the same music differ in their dither."""
IDENTITY_DIGITS = 12
"""Digits of a judge's identity at the start of each of its notes."""


@dataclass(frozen=True)
class Presented:
    """One trial as a judge receives it: mono signals ``[L]`` of one rate, without names.

    Attributes:
        vocal: The vocal alone.
        first: Vocal and accompaniment of the side that is played first.
        second: Vocal and accompaniment of the other side.
        rate_hz: Sample rate of all three.
    """

    vocal: Samples
    first: Samples
    second: Samples
    rate_hz: int


@dataclass(frozen=True)
class Opinion:
    """What a judge prefers by one criterion, how sure it is (1 to 5), and why."""

    choice: Preference
    confidence: float
    reason: str


@dataclass(frozen=True)
class Answer:
    """A judge's opinion by each criterion."""

    opinions: Mapping[str, Opinion]


@dataclass(frozen=True)
class Failed:
    """No answer.

    Attributes:
        reason: One of a small number of sentences, so that failures can be counted by it.
        text: What the judge wrote instead.
    """

    reason: str
    text: str = ""


class Judge(Protocol):
    """Anything that can answer trials. Equal judges give equal answers."""

    @property
    def identity(self) -> str:
        """The sha256, in hexadecimal digits, of everything that changes the answers."""

    def judge(self, trials: Sequence[Presented]) -> Iterator[Answer | Failed]:
        """Answer the trials in order; each answer comes as soon as it is known, so that it can be stored."""


class JudgeSource(Protocol):
    """A judge that is not loaded yet: each process loads its own, on its own device."""

    @property
    def identity(self) -> str:
        """That of the judge, known without loading it."""

    def load(self, device: torch.device) -> Judge:
        """The judge on a device; RequestError if it cannot be had."""


def vote_of(answer: Answer, judge: str, identity: str, trial: str, presentation: Presentation) -> Vote:
    """An answer as a vote in the study's sides.

    A vote has one confidence: that of the overall preference, or of the last criterion where it is not asked for. The
    note starts with the judge's identity, so that answers of different judges are never mixed under one name.
    """
    sides: dict[Preference, Choice] = {"first": "A", "second": "B", "tie": "tie"}
    if presentation == "BA":
        sides |= {"first": "B", "second": "A"}
    opinions = answer.opinions
    main = opinions.get("overall") or opinions[list(opinions)[-1]]
    reasons = "; ".join(f"{criterion}: {opinion.reason}" for criterion, opinion in opinions.items())
    return Vote(
        voter=f"{JUDGE_PREFIX}{judge}",
        trial=trial,
        presentation=presentation,
        choices={criterion: sides[opinion.choice] for criterion, opinion in opinions.items()},
        confidence=main.confidence,
        note=f"{note_start(identity)} {reasons}"[:LONGEST_NOTE],
    )


def note_start(identity: str) -> str:
    """How the notes of a judge's votes begin."""
    return f"[{identity[:IDENTITY_DIGITS]}]"


def preference(difference: float, scale: float) -> tuple[Preference, float]:
    """A choice and a confidence from the first side's score minus the second's.

    The confidence grows from 1 at equal scores to 5 at a difference of ``scale`` or more.
    """
    if abs(difference) <= TIE_SHARE * scale:
        return "tie", LOWEST_CONFIDENCE
    certainty = min(abs(difference) / scale, 1.0)
    confidence = LOWEST_CONFIDENCE + (HIGHEST_CONFIDENCE - LOWEST_CONFIDENCE) * certainty
    return ("first" if difference > 0 else "second"), round(confidence, 3)


def without_vocal(mix: Samples, vocal: Samples) -> Samples:
    """The accompaniment ``[L]`` in a mix whose vocal has an unknown gain, found by least squares.

    A trial's sounds are loudness-matched and filtered alike, so the mix holds the vocal file times one number. What of
    the accompaniment happens to correlate with the vocal over the whole clip goes with it.
    """
    power = float(np.dot(vocal.astype(np.float64), vocal))
    gain = float(np.dot(mix.astype(np.float64), vocal)) / power if power > 0 else 0.0
    return np.asarray(mix - np.float32(gain) * vocal, dtype=np.float32)


def opinions_of(scores: Mapping[str, tuple[float, float, float]], what: Mapping[str, str]) -> dict[str, Opinion]:
    """Opinions from scores: criterion -> (first side's score, second side's score, scale of a difference)."""
    made: dict[str, Opinion] = {}
    for criterion, (first, second, scale) in scores.items():
        choice, confidence = preference(first - second, scale)
        made[criterion] = Opinion(choice, confidence, f"{what[criterion]} {first:.4f} against {second:.4f}")
    return made


def same_sounds(score: Callable[[Samples, Samples, int], T]) -> Callable[[Samples, Samples, int], T]:
    """``score(vocal, mix, rate_hz)`` that is computed once for equal sounds: both orders of a trial share them."""
    known: dict[tuple[bytes, bytes, int], T] = {}

    def scored(vocal: Samples, mix: Samples, rate_hz: int) -> T:
        key = (vocal.tobytes(), mix.tobytes(), rate_hz)
        if key not in known:
            known[key] = score(vocal, mix, rate_hz)
        return known[key]

    return scored
