"""A judge's way through a study: preferences come out of the report, nothing is asked twice, nothing is mixed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from scripted_judge import STRENGTHS, AlwaysFirst, ScriptedJudge, systems_by_sound
from tiny_study import make_tiny_study

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.judge.base import Failed
from hafm_lightning.listening.judge.running import judge_study
from hafm_lightning.listening.report.report import build_report
from hafm_lightning.listening.study import Key, Study
from hafm_lightning.listening.vote import Vote
from hafm_lightning.listening.votes import VoteStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Key]:
    return make_tiny_study(tmp_path_factory.mktemp("study"), clips=6)


@pytest.fixture
def judge(made: tuple[Study, Key]) -> ScriptedJudge:
    return ScriptedJudge(systems_by_sound(*made), STRENGTHS)


def test_the_report_recovers_known_preferences(made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path) -> None:
    study, key = made
    outcome = judge_study(study, judge, "scripted", tmp_path / "votes.sqlite", accelerator="cpu")
    assert outcome is not None
    assert outcome.voter == "judge:scripted"
    assert not outcome.failures
    assert len(outcome.votes) == judge.asked == 2 * len(study.trials)
    report = build_report(study, key, outcome.votes)
    assert report.gate.passed
    for criterion, strengths in STRENGTHS.items():
        for pair in report.criterion(criterion).pairs:
            better = max((pair.first, pair.second), key=lambda system: strengths[system])
            wins = 6 if better == pair.first else 0
            assert (pair.share.wins, pair.share.n, pair.ties) == (wins, 6, 0), (criterion, pair)
    (voter,) = report.voters
    assert (voter.silence_failed, voter.silence_trials, voter.same_tied, voter.same_trials) == (0, 1, 1, 1)
    assert {vote.confidence for vote in outcome.votes} == {5.0}  # that of the overall preference
    assert all(vote.note.startswith("[aaaaaaaaaaaa] rhythm: ") for vote in outcome.votes)


def test_votes_are_in_the_studys_sides_in_both_orders(
    made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path
) -> None:
    study, key = made
    outcome = judge_study(study, judge, "scripted", tmp_path / "votes.sqlite", accelerator="cpu")
    assert outcome is not None
    for vote in outcome.votes:
        assignment = key.assignments[vote.trial]
        a, b = (STRENGTHS["overall"][system] for system in (assignment.a, assignment.b))
        assert vote.choices["overall"] == ("tie" if a == b else "A" if a > b else "B")
    assert {(v.trial, v.presentation) for v in outcome.votes} == {(t.id, o) for t in study.trials for o in ("AB", "BA")}


def test_a_judge_that_follows_the_order_only_ties(
    made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path
) -> None:
    study, key = made
    first = AlwaysFirst(judge.systems, judge.strengths)
    outcome = judge_study(study, first, "first", tmp_path / "votes.sqlite", accelerator="cpu")
    assert outcome is not None
    report = build_report(study, key, outcome.votes)
    assert report.gate.passed is None
    assert all(pair.share.n == 0 and pair.ties == 6 for pair in report.criterion("overall").pairs)


def test_failures_are_counted_and_asked_again_only_on_request(
    made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path
) -> None:
    study, _ = made
    votes, total = tmp_path / "votes.sqlite", 2 * len(study.trials)
    judge.before = lambda count: Failed("prose", f"text {count}") if count % 10 == 3 else None
    outcome = judge_study(study, judge, "scripted", votes, accelerator="cpu")
    assert outcome is not None
    assert outcome.example == "text 3"
    failed = outcome.reasons["prose"]
    assert failed == len(range(3, total + 1, 10))
    assert len(outcome.votes) == total - failed
    judge.asked, judge.before = 0, lambda count: None
    assert judge_study(study, judge, "scripted", votes, accelerator="cpu") is not None
    assert judge.asked == 0
    outcome = judge_study(study, judge, "scripted", votes, accelerator="cpu", retry_failures=True)
    assert outcome is not None
    assert judge.asked == failed
    assert len(outcome.votes) == total
    assert not outcome.failures


def test_after_kill_9_nothing_is_asked_twice(made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path) -> None:
    study, _ = made
    votes = tmp_path / "votes.sqlite"

    def die_at_the_sixth(count: int) -> None:
        if count == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    judge.before = die_at_the_sixth
    # a fork: a new interpreter would only import the same packages again
    child = multiprocessing.get_context("fork").Process(
        target=judge_study, args=(study, judge, "scripted", votes), kwargs={"accelerator": "cpu"}
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with VoteStore.for_study(votes, study) as store:
        kept = store.votes()
    assert len(kept) == 5  # all but the one that was being answered
    judge.before = lambda count: None
    outcome = judge_study(study, judge, "scripted", votes, accelerator="cpu")
    assert outcome is not None
    assert outcome.votes[:5] == tuple(kept)
    assert judge.asked == 2 * len(study.trials) - 5
    assert len(outcome.votes) == 2 * len(study.trials)


def test_two_processes_share_the_trials(made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path) -> None:
    """Over gloo; the second run has one trial for two processes."""
    study, _ = made
    log = tmp_path / "log"

    def note(count: int) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")

    judge.before = note
    alone = judge_study(study, judge, "alone", tmp_path / "alone.sqlite", accelerator="cpu")
    log.unlink()
    shared, votes = {"devices": 2, "strategy": "ddp_fork", "accelerator": "cpu"}, tmp_path / "both.sqlite"
    both = judge_study(study, judge, "alone", votes, **shared)
    assert alone is not None
    assert both is not None
    assert sorted(both.votes, key=repr) == sorted(alone.votes, key=repr)
    trials = Counter(log.read_text().split())
    assert len(trials) == 2
    assert sum(trials.values()) == 2 * len(study.trials)
    assert max(trials.values()) - min(trials.values()) <= 2
    with sqlite3.connect(votes) as database:
        database.execute("DELETE FROM votes WHERE trial = ?", [study.trials[0].id])
    again = judge_study(study, judge, "alone", votes, **shared)
    assert again is not None
    assert sorted(again.votes, key=repr) == sorted(alone.votes, key=repr)


def test_another_judges_votes_are_not_continued(made: tuple[Study, Key], judge: ScriptedJudge, tmp_path: Path) -> None:
    study, _ = made
    votes = tmp_path / "votes.sqlite"
    with VoteStore.for_study(votes, study) as store:
        listener = Vote("ann", study.trials[0].id, "AB", dict.fromkeys(study.criteria, "A"), 3)
        store.add(listener)
    judge_study(study, judge, "one", votes, accelerator="cpu")
    other = ScriptedJudge(judge.systems, judge.strengths, identity="b" * 64)
    with pytest.raises(RequestError, match="the votes of judge:one are of another judge"):
        judge_study(study, other, "one", votes, accelerator="cpu")
    outcome = judge_study(study, other, "two", votes, accelerator="cpu")
    assert outcome is not None
    assert {vote.voter for vote in outcome.votes} == {"judge:two"}
    for name in ("", "x" * 200, "a\nb"):
        with pytest.raises(RequestError, match="--name"):
            judge_study(study, judge, name, votes, accelerator="cpu")
    with pytest.raises(RequestError, match="--accelerator warp"):
        judge_study(study, judge, "three", votes, accelerator="warp")
