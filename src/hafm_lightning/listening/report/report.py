"""The report of a listening study: counts, intervals, tests, strengths and agreement, from votes and the key.

The three tables of the paper are ``wins`` (trials that each system won), ``head_to_head`` (pairs) and the column
``confidence`` of ``wins`` (the sum of confidences of the trials won). Ties are counted apart and are in no share.

The gate comes first: voters that do not prefer the ground truth to a random accompaniment, with the lower bound above
one half, cannot tell music that fits from music that does not, and what they say of a model is not informative.

Votes of one listener, and votes on one clip, are not independent. Where a trial has several votes, verdicts therefore
use the bootstrap over clips and listeners; Wilson's interval and the binomial test, which take every vote as
independent, stand beside it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.listening.report.statistics import (
    LEVEL,
    Outcomes,
    Share,
    bradley_terry_samples,
    fewest,
    interval_of,
    krippendorff_alpha,
    resampled,
    share_of,
    wilson,
)
from hafm_lightning.listening.report.verdicts import TIE, Verdict, Verdicts, verdicts_of
from hafm_lightning.listening.study import SILENCE, Key, Study
from hafm_lightning.listening.vote import Failure, Vote

TRUTH, RANDOM = "ground_truth", "random"
REPORT_FORMAT = 1
"""Version of ``report.json``."""
PREFERENCE = "overall"
"""The criterion of the paper's tables; the last one of a study that does not ask for it."""


@dataclass(frozen=True)
class SystemWins:
    """Row of a system: trials that it was in, won, tied and lost; summed confidence of the wins, and its share.

    ``share_of_all`` is its wins of the trials of all pairs, ties included, as in the paper's table 1.

    ``strength`` is its Bradley-Terry strength with the bootstrap interval; the strengths of all systems sum to 1.
    """

    system: str
    trials: int
    wins: int
    ties: int
    losses: int
    share_of_all: float
    confidence: float | None
    confidence_share: float | None
    strength: float | None
    strength_low: float | None
    strength_high: float | None


@dataclass(frozen=True)
class HeadToHead:
    """Two systems: wins of each, ties, the share of ``first`` with its intervals and test, and what it allows to say.

    ``low`` and ``high`` bound the share by the bootstrap over clips and listeners; None where every vote stands alone.
    """

    first: str
    second: str
    share: Share
    ties: int
    low: float | None
    high: float | None
    verdict: str

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval on which the verdict rests."""
        if self.low is None or self.high is None:
            return self.share.low, self.share.high
        return self.low, self.high


@dataclass(frozen=True)
class Gate:
    """Whether the voters prefer the ground truth to random accompaniments."""

    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class CriterionTables:
    """Wins and pairs by one criterion, and the voters' agreement (nominal alpha; None where none can be computed)."""

    criterion: str
    wins: tuple[SystemWins, ...]
    pairs: tuple[HeadToHead, ...]
    alpha: float | None


@dataclass(frozen=True)
class Voter:
    """A listener or judge: pairs answered, controls failed of those answered, failures by reason."""

    voter: str
    pairs: int
    silence_failed: int
    silence_trials: int
    same_tied: int
    same_trials: int
    failures: Mapping[str, int]
    excluded: bool = False


@dataclass(frozen=True)
class Report:
    """Everything that the votes show."""

    title: str
    study_id: str
    facts: Mapping[str, Any]
    gate: Gate
    criteria: tuple[CriterionTables, ...]
    clips: Mapping[str, Mapping[str, int]]
    """Clip -> system -> trials won by the overall preference; ties under ``tie``."""
    first_played: Share
    """How often the accompaniment that was played first was preferred, over listeners' pairs."""
    voters: tuple[Voter, ...]

    def criterion(self, name: str) -> CriterionTables:
        """The tables of one criterion."""
        return next(tables for tables in self.criteria if tables.criterion == name)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"format": REPORT_FORMAT, **asdict(self)}


def build_report(
    study: Study,
    key: Key,
    votes: Iterable[Vote],
    failures: Iterable[Failure] = (),
    *,
    most_failed: float | None = None,
    seed: int = 0,
) -> Report:
    """Tables of all votes.

    Args:
        study: The study.
        key: Its key.
        votes: Of listeners or judges; see :mod:`~hafm_lightning.listening.report.verdicts`.
        failures: Trials that a judge could not answer.
        most_failed: Voters who fail a larger share of the silence controls are left out of all tables but their own;
            None leaves nobody out.
        seed: Of the bootstrap.
    """
    all_verdicts = verdicts_of(study, key, votes, failures)
    main_criterion = PREFERENCE if PREFERENCE in study.criteria else study.criteria[-1]
    voters = _voters(all_verdicts, main_criterion, most_failed)
    excluded = {voter.voter for voter in voters if voter.excluded}
    pairs = [verdict for verdict in all_verdicts.pairs if verdict.voter not in excluded]
    criteria = tuple(_tables(key.systems, pairs, criterion, seed) for criterion in study.criteria)
    main = next(tables for tables in criteria if tables.criterion == main_criterion)
    clips: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in pairs:
        clips[verdict.clip][verdict.winners[main.criterion]] += 1
    decided = [v for v in pairs if v.first is not None and v.sides[main.criterion] != TIE]
    first = share_of(sum(v.sides[main.criterion] == v.first for v in decided), len(decided))
    facts = {
        "trials": len(study.trials),
        "pairs answered": len(pairs),
        "voters": len({verdict.voter for verdict in pairs}),
        "voters left out": len(excluded),
        "clips": len(clips),
        "seconds of a clip": study.duration_s,
    }
    per_clip = {clip: dict(counts) for clip, counts in sorted(clips.items())}
    return Report(study.title, study.study_id, facts, _gate(main), criteria, per_clip, first, voters)


def _tables(systems: Sequence[str], verdicts: Sequence[Verdict], criterion: str, seed: int) -> CriterionTables:
    names = [system for system in systems if any(system in verdict.systems for verdict in verdicts)]
    outcomes = Outcomes.of(names, [(verdict.systems, verdict.winners[criterion]) for verdict in verdicts])
    samples = _bootstrap(names, outcomes, verdicts, seed)
    everything = np.ones(len(verdicts), dtype=np.int64)
    strengths = bradley_terry_samples(outcomes.wins(everything, ties=True)[None])[0] if len(names) > 1 else None
    total = sum(v.confidence or 0.0 for v in verdicts if v.winners[criterion] != TIE)
    wins = []
    for index, system in enumerate(names):
        own = [verdict for verdict in verdicts if system in verdict.systems]
        won = [verdict for verdict in own if verdict.winners[criterion] == system]
        ties = sum(verdict.winners[criterion] == TIE for verdict in own)
        known = any(verdict.confidence is not None for verdict in own)
        confidence = sum(verdict.confidence or 0.0 for verdict in won) if known else None
        low, high = interval_of(samples.strengths[:, index], samples.drawn) if len(samples.strengths) else (None, None)
        if low == high:  # no spread was seen, which is no interval without width
            low, high = None, None
        share = confidence / total if confidence is not None and total else None
        scaled = strengths is not None and not np.isnan(strengths).any()
        strength = float(strengths[index]) if strengths is not None and scaled else None
        counts = (len(own), len(won), ties, len(own) - len(won) - ties)
        wins.append(SystemWins(system, *counts, len(won) / len(verdicts), confidence, share, strength, low, high))
    pairs = tuple(
        _head_to_head(first, second, verdicts, criterion, samples.shares.get((first, second), []))
        for first, second in combinations(names, 2)
        if any(set(verdict.systems) == {first, second} for verdict in verdicts)
    )
    by_trial: dict[str, list[str]] = defaultdict(list)
    for verdict in verdicts:
        by_trial[verdict.trial].append(verdict.sides[criterion])
    return CriterionTables(criterion, tuple(wins), pairs, krippendorff_alpha(by_trial.values()))


@dataclass(frozen=True)
class _Samples:
    """Bootstrap samples: strengths ``[samples, systems]``, for each pair the share of the first; and the number of
    songs or listeners, whichever are fewer."""

    strengths: npt.NDArray[np.float64]
    shares: Mapping[tuple[str, str], list[float]]
    drawn: int | None


def _bootstrap(names: Sequence[str], outcomes: Outcomes, verdicts: Sequence[Verdict], seed: int) -> _Samples:
    matrices: list[npt.NDArray[np.float64]] = []
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    owners = _owners(verdicts)
    for weights in resampled(owners, seed=seed) if verdicts else ():
        matrices.append(outcomes.wins(weights, ties=True))
        wins = outcomes.wins(weights, ties=False)
        for (i, first), (j, second) in combinations(enumerate(names), 2):
            if decided := wins[i, j] + wins[j, i]:
                shares[first, second].append(float(wins[i, j] / decided))
    strengths = bradley_terry_samples(np.stack(matrices)) if len(names) > 1 else np.empty((0, len(names)))
    # A sample without a link between some systems has no common scale.
    return _Samples(strengths[~np.isnan(strengths).any(axis=1)], shares, fewest(owners))


def _owners(verdicts: Sequence[Verdict]) -> list[list[Any]]:
    """Song and voter of each verdict; clips of one song are not independent, so the factor is the song."""
    return [[verdict.song for verdict in verdicts], [verdict.voter for verdict in verdicts]]


def _head_to_head(
    first: str, second: str, verdicts: Sequence[Verdict], criterion: str, samples: Sequence[float]
) -> HeadToHead:
    own = [verdict for verdict in verdicts if set(verdict.systems) == {first, second}]
    winners = Counter(verdict.winners[criterion] for verdict in own)
    share = share_of(winners[first], winners[first] + winners[second])
    songs = {verdict.song for verdict in own}
    alone = len({verdict.trial for verdict in own}) == len(own) == len(songs)
    low, high = (None, None) if alone or not samples else interval_of(samples, fewest(_owners(own)))
    if low is not None and low == high and share.share is not None:
        # All samples are equal, mostly because all votes agree, so the bootstrap has no spread. Votes on one song
        # may agree because of the song: what is shown is what so many songs with one vote each would show.
        low, high = wilson(share.share, len(songs))
    bounds = (share.low, share.high) if low is None or high is None else (low, high)
    return HeadToHead(first, second, share, winners[TIE], low, high, _sentence(first, second, share, bounds))


def _sentence(first: str, second: str, share: Share, bounds: tuple[float, float]) -> str:
    if not share.n:
        return "no decided trial"
    low, high = bounds
    if low > 0.5:
        return f"{first} is preferred"
    if high < 0.5:
        return f"{second} is preferred"
    return f"no significant difference: the {LEVEL:.0%} interval contains one half"


def _gate(tables: CriterionTables) -> Gate:
    pair = next((p for p in tables.pairs if {p.first, p.second} == {TRUTH, RANDOM}), None)
    if pair is None or not pair.share.n:
        return Gate(None, "The gate was not tested: no decided trial of ground truth against random pairing.")
    low, high = pair.bounds
    won, lower = (pair.share.wins, low) if pair.first == TRUTH else (pair.share.n - pair.share.wins, 1 - high)
    facts = f"Ground truth was preferred to random pairing in {won} of {pair.share.n} decided trials"
    facts += f" ({won / pair.share.n:.1%}, lower bound {lower:.1%}, p = {pair.share.p:.2g})"
    if lower > 0.5:
        return Gate(True, f"{facts}: the gate is passed.")
    return Gate(False, f"{facts}: the gate is not passed. Preferences between other systems are uninformative.")


def _voters(verdicts: Verdicts, criterion: str, most_failed: float | None) -> tuple[Voter, ...]:
    voters = []
    names = {v.voter for v in (*verdicts.pairs, *verdicts.controls)} | set(verdicts.failures)
    for name in sorted(names):
        controls = [verdict for verdict in verdicts.controls if verdict.voter == name]
        silence = [verdict for verdict in controls if verdict.kind == "silence"]
        same = [verdict for verdict in controls if verdict.kind == "same"]
        failed = sum(verdict.winners[criterion] in (SILENCE, TIE) for verdict in silence)
        tied = sum(verdict.sides[criterion] == TIE for verdict in same)
        excluded = most_failed is not None and bool(silence) and failed / len(silence) > most_failed
        pairs = sum(verdict.voter == name for verdict in verdicts.pairs)
        reasons = verdicts.failures.get(name, {})
        voters.append(Voter(name, pairs, failed, len(silence), tied, len(same), reasons, excluded))
    return tuple(voters)
