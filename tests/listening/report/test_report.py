"""The report against the paper's own counts, and against voters whose preferences are known."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from study_fixtures import made_key, made_study, made_vote

from hafm_lightning.listening.report.report import build_report
from hafm_lightning.listening.vote import Failure, Vote

SYSTEMS = ("three_stages", "ground_truth", "random")
PAPER_WINS = {
    ("three_stages", "ground_truth"): 17,
    ("three_stages", "random"): 19,
    ("ground_truth", "random"): 18,
}
"""Wins of the first of 33 trials each: table 2 of the paper. They give table 1: 36, 34 and 29 of 99."""
PAPER_CONFIDENCE = {"three_stages": 150, "ground_truth": 148, "random": 136}
"""Table 3: summed confidences of the trials won, of 434."""


@pytest.fixture
def paper() -> tuple[Any, Any, list[Vote]]:
    """Study, key and judge's votes in both orders with the paper's counts."""
    pairs = [(f"clip {clip:02d}", first, second) for first, second in PAPER_WINS for clip in range(33)]
    study = made_study(len(pairs))
    key = made_key(study, SYSTEMS, pairs)
    left = dict(PAPER_CONFIDENCE)
    won = {"three_stages": 36, "ground_truth": 34, "random": 29}
    votes = []
    seen = dict.fromkeys(PAPER_WINS, 0)
    for trial in study.trials:
        assignment = key.assignments[trial.id]
        pair = next(names for names in PAPER_WINS if set(names) == {assignment.a, assignment.b})
        winner = pair[0] if seen[pair] < PAPER_WINS[pair] else pair[1]
        seen[pair] += 1
        confidence = min(5, left[winner] - (won[winner] - 1))  # whole numbers from 1 to 5 with the printed sums
        left[winner] -= confidence
        won[winner] -= 1
        side = "A" if assignment.a == winner else "B"
        votes += [made_vote("judge:test", trial.id, side, order, confidence) for order in ("AB", "BA")]
    return study, key, votes


def test_the_papers_counts_come_out_as_printed(paper: Any) -> None:
    report = build_report(*paper)
    tables = report.criterion("overall")
    assert {row.system: (row.wins, row.trials, row.ties) for row in tables.wins} == {
        "three_stages": (36, 66, 0),
        "ground_truth": (34, 66, 0),
        "random": (29, 66, 0),
    }
    assert sum(row.wins for row in tables.wins) == 99
    assert [f"{row.share_of_all:.1%}" for row in tables.wins] == ["36.4%", "34.3%", "29.3%"]
    assert {row.system: row.confidence for row in tables.wins} == PAPER_CONFIDENCE
    assert [round(100 * (row.confidence_share or 0), 1) for row in tables.wins] == [34.6, 34.1, 31.3]
    shares = {(pair.first, pair.second): pair.share for pair in tables.pairs}
    printed = {pair: round(100 * (share.share or 0), 1) for pair, share in shares.items()}
    assert list(printed.values()) == [51.5, 57.6, 54.5]
    assert all("no significant difference" in pair.verdict for pair in tables.pairs)


def test_the_papers_judge_does_not_pass_the_gate(paper: Any) -> None:
    gate = build_report(*paper).gate
    assert gate.passed is False
    assert "18 of 33" in gate.sentence
    assert "p = 0.73" in gate.sentence
    assert "uninformative" in gate.sentence


def test_a_judge_that_follows_the_order_has_ties_only(paper: Any) -> None:
    study, key, votes = paper
    by_order = [
        made_vote(vote.voter, vote.trial, "A" if vote.presentation == "AB" else "B", vote.presentation, 5)
        for vote in votes
    ]
    report = build_report(study, key, by_order)
    assert [(row.wins, row.ties) for row in report.criterion("overall").wins] == [(0, 66)] * 3
    assert report.gate.passed is None


def test_half_answered_and_failed_trials_of_a_judge_are_counted(paper: Any) -> None:
    study, key, votes = paper
    failures = [Failure("judge:test", votes[-1].trial, "BA", "the answer is not JSON")]
    report = build_report(study, key, votes[:-1], failures)
    (voter,) = report.voters
    assert voter.pairs == 98
    assert dict(voter.failures) == {"only one of the two orders was answered": 1, "the answer is not JSON": 1}


def listeners(study: Any, key: Any, count: int, keen: float, seed: int = 0) -> list[Vote]:
    """Votes of listeners who choose the better system with probability ``keen``, and of those with no ear."""
    rank = {name: index for index, name in enumerate(("ground_truth", "three_stages", "random", "silence"))}
    draw = random.Random(seed)
    votes = []
    for listener in range(count):
        for trial in study.trials:
            assignment = key.assignments[trial.id]
            order = draw.choice(["AB", "BA"])
            if assignment.a == assignment.b:
                side = "tie"
            else:
                better = "A" if rank[assignment.a] < rank[assignment.b] else "B"
                side = better if draw.random() < keen else draw.choice(["A", "B"])
            votes.append(made_vote(f"listener {listener:02d}", trial.id, side, order))
    return votes


def many_pairs(clips: int) -> list[tuple[str, str, str]]:
    return [(f"clip {clip:02d}", a, b) for a, b in combinations(SYSTEMS, 2) for clip in range(clips)]


def test_listeners_with_an_order_of_preference_are_recovered() -> None:
    study = made_study(60)
    key = made_key(study, SYSTEMS, many_pairs(20))
    report = build_report(study, key, listeners(study, key, 8, keen=0.5))
    tables = report.criterion("overall")
    strengths = {row.system: row.strength for row in tables.wins}
    assert sorted(strengths, key=lambda name: -(strengths[name] or 0)) == ["ground_truth", "three_stages", "random"]
    assert report.gate.passed is True
    assert tables.alpha is not None
    assert 0.15 < tables.alpha < 0.35  # expected: keenness squared
    assert {pair.verdict for pair in tables.pairs} == {"ground_truth is preferred", "three_stages is preferred"}


def test_listeners_without_preference_allow_no_verdict() -> None:
    study = made_study(60)
    key = made_key(study, SYSTEMS, many_pairs(20))
    report = build_report(study, key, listeners(study, key, 8, keen=0.0, seed=5))
    assert report.gate.passed is False
    assert all("no significant" in pair.verdict for pair in report.criterion("overall").pairs)
    assert abs(report.criterion("overall").alpha or 0.0) < 0.1
    assert report.first_played.low < 0.5 < report.first_played.high


def test_votes_on_one_clip_do_not_count_as_independent() -> None:
    # Thirty listeners agree about three clips: Wilson's interval takes 90 votes for 90 facts, the bootstrap for three.
    study = made_study(3)
    key = made_key(study, SYSTEMS, [(f"clip {clip}", "ground_truth", "random") for clip in range(3)])
    votes = []
    for listener in range(30):
        for index, trial in enumerate(study.trials):
            winner = "ground_truth" if index < 2 else "random"
            side = "A" if key.assignments[trial.id].a == winner else "B"
            votes.append(made_vote(f"listener {listener:02d}", trial.id, side, "AB"))
    (pair,) = build_report(study, key, votes).criterion("overall").pairs
    assert pair.share.low > 0.55
    assert pair.low is not None
    assert pair.low < 0.5
    assert "no significant difference" in pair.verdict


@pytest.mark.parametrize(
    ("clips", "voters", "shown"), [(1, 2, False), (3, 2, False), (1, 1, False), (3, 30, False), (8, 8, True)]
)
def test_agreement_about_few_songs_proves_no_more_than_their_number(clips: int, voters: int, shown: bool) -> None:
    """Everybody prefers the truth: the bootstrap has no spread, and its interval would be [100 %, 100 %]."""
    study = made_study(2 * clips)  # two trials a song
    key = made_key(study, SYSTEMS, [(f"clip {clip:02d}", "ground_truth", "random") for clip in range(clips)] * 2)
    votes = [
        made_vote(
            f"listener {voter:02d}", trial.id, "A" if key.assignments[trial.id].a == "ground_truth" else "B", "AB"
        )
        for voter in range(voters)
        for trial in study.trials
    ]
    report = build_report(study, key, votes)
    (pair,) = report.criterion("overall").pairs
    assert pair.low is not None
    assert pair.low == pytest.approx(clips / (clips + 1.959964**2))  # Wilson's lower bound where all of so many agree
    assert pair.high == 1.0
    assert report.gate.passed is shown
    assert all(row.strength_low is None for row in report.criterion("overall").wins)


def test_odd_studies_have_a_report() -> None:
    study = made_study(4)
    key = made_key(study, SYSTEMS, [("clip", "ground_truth", "random"), ("clip 2", "ground_truth", "three_stages")] * 2)
    failure = Failure("judge:test", study.trials[0].id, "AB", "prose")
    assert build_report(study, key, [], [failure]).gate.passed is None
    one = [made_vote("listener", study.trials[0].id, "A", "AB")]
    assert len(build_report(study, key, one).clips) == 1
    ties = [made_vote(name, trial.id, "tie", "BA") for name in ("x", "y") for trial in study.trials]
    report = build_report(study, key, ties)
    assert report.gate.passed is None
    assert all(pair.verdict == "no decided trial" for pair in report.criterion("overall").pairs)
    assert report.criterion("overall").alpha is None


def test_listeners_who_fail_the_silence_controls_can_be_left_out() -> None:
    pairs = many_pairs(4)
    study = made_study(len(pairs) + 4)
    controls = [(f"clip {clip:02d}", "ground_truth", "silence") for clip in range(2)]
    controls += [(f"clip {clip:02d}", "ground_truth", "ground_truth") for clip in range(2)]
    key = made_key(study, SYSTEMS, pairs + controls)
    good = listeners(study, key, 3, keen=1.0)
    silence = {trial for trial, a in key.assignments.items() if a.kind == "silence"}
    deaf = []
    for vote in listeners(study, key, 1, keen=1.0):
        side = vote.choices["overall"]
        if vote.trial in silence:
            side = "B" if side == "A" else "A"
        deaf.append(made_vote("deaf", vote.trial, side, "AB"))
    report = build_report(study, key, [*good, *deaf], most_failed=0.5)
    rows = {voter.voter: voter for voter in report.voters}
    assert rows["deaf"].excluded
    assert (rows["deaf"].silence_failed, rows["deaf"].silence_trials) == (2, 2)
    assert (rows["listener 00"].silence_failed, rows["listener 00"].same_tied) == (0, 2)
    assert report.facts["voters left out"] == 1
    assert report.facts["pairs answered"] == 3 * len(pairs)
    everyone = build_report(study, key, [*good, *deaf])
    assert everyone.facts["pairs answered"] == 4 * len(pairs)


def test_criteria_have_tables_of_their_own(paper: Any) -> None:
    study, key, votes = paper
    votes = [replace(vote, choices={**vote.choices, "rhythm": "tie"}) for vote in votes]
    report = build_report(study, key, votes)
    assert [tables.criterion for tables in report.criteria] == list(study.criteria)
    assert all(row.ties == 66 for row in report.criterion("rhythm").wins)
    assert report.criterion("harmony").wins == report.criterion("overall").wins


def test_the_report_does_not_change_from_run_to_run(paper: Any) -> None:
    assert build_report(*paper, seed=3).as_dict() == build_report(*paper, seed=3).as_dict()


def test_clips_list_the_trials_won(paper: Any) -> None:
    clips = build_report(*paper).clips
    assert len(clips) == 33
    assert all(sum(counts.values()) == 3 for counts in clips.values())
