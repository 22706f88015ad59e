"""From votes to verdicts: sides become systems, both orders of a judge become one verdict, controls stand apart.

A listener votes once on a trial. A judge votes on both orders of a trial: its verdict on a criterion is what both
orders agree on, and a tie where they differ, because a preference that follows the order is none. A judge's trial with
one order only is a failure, is counted, and has no verdict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hafm_lightning.listening.study import Assignment, Key, Study
from hafm_lightning.listening.vote import Failure, Vote

TIE = "tie"
JUDGE = "judge:"
"""Start of the names of voters that answer both orders."""


@dataclass(frozen=True)
class Verdict:
    """One voter's answer to one trial.

    Attributes:
        voter: Listener or judge.
        trial: Id of the trial.
        clip: Clip whose vocal was played.
        song: Song of the clip.
        kind: ``pair``, or the control ``same`` or ``silence``.
        systems: The systems of sides A and B.
        winners: Criterion -> the preferred system, or ``tie``.
        sides: Criterion -> the preferred side ``A`` or ``B``, or ``tie``; for the control with equal systems.
        first: The side that was played first; None for a judge, which was given both orders.
        confidence: 1 to 5; None where it was not asked for.
    """

    voter: str
    trial: str
    clip: str
    song: str
    kind: str
    systems: tuple[str, str]
    winners: Mapping[str, str]
    sides: Mapping[str, str]
    first: str | None
    confidence: float | None


@dataclass(frozen=True)
class Verdicts:
    """All verdicts of a study, pairs and controls, and the judges' failures: voter -> reason -> number of trials."""

    pairs: tuple[Verdict, ...]
    controls: tuple[Verdict, ...]
    failures: Mapping[str, Mapping[str, int]]

    def of_pair(self, first: str, second: str) -> list[Verdict]:
        """Verdicts on trials of two systems, whichever stood on side A."""
        return [verdict for verdict in self.pairs if set(verdict.systems) == {first, second}]


def verdicts_of(study: Study, key: Key, votes: Iterable[Vote], failures: Iterable[Failure] = ()) -> Verdicts:
    """Verdicts in the order of voter and trial, from votes that the store has checked against the study."""
    by_trial: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        by_trial[vote.voter, vote.trial].append(vote)
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for failure in failures:
        counted[failure.voter][failure.reason] += 1
    pairs: list[Verdict] = []
    controls: list[Verdict] = []
    for (voter, trial), given in sorted(by_trial.items()):
        if voter.startswith(JUDGE) and len(given) < 2:
            counted[voter]["only one of the two orders was answered"] += 1
            continue
        verdict = _verdict(key.assignments[trial], given, study.criteria)
        (pairs if verdict.kind == "pair" else controls).append(verdict)
    return Verdicts(tuple(pairs), tuple(controls), {voter: dict(reasons) for voter, reasons in counted.items()})


def _verdict(assignment: Assignment, given: Sequence[Vote], criteria: Sequence[str]) -> Verdict:
    sides = {}
    for criterion in criteria:
        choices = {vote.choices[criterion] for vote in given}
        sides[criterion] = choices.pop() if len(choices) == 1 else TIE
    systems = {"A": assignment.a, "B": assignment.b, TIE: TIE}
    confidences = [vote.confidence for vote in given if vote.confidence is not None]
    first = given[0].presentation[0] if len(given) == 1 else None
    return Verdict(
        voter=given[0].voter,
        trial=given[0].trial,
        clip=assignment.clip,
        song=assignment.song,
        kind=assignment.kind,
        systems=(assignment.a, assignment.b),
        winners={criterion: systems[side] for criterion, side in sides.items()},
        sides=sides,
        first=first,
        confidence=sum(confidences) / len(confidences) if confidences else None,
    )
