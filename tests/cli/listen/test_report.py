"""``listen report`` and ``listen import`` from the command line."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from tiny_study import make_tiny_study

from hafm_lightning.cli import main
from hafm_lightning.listening.study import CRITERIA, Study
from hafm_lightning.listening.vote import Vote
from hafm_lightning.listening.votes import VoteStore


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A tiny study with the votes of three listeners who like the ground truth."""
    folder = tmp_path / "study"
    folder.mkdir()
    study, key = make_tiny_study(folder, clips=5)
    draw = random.Random(0)
    with VoteStore.for_study(folder / "votes.sqlite", study) as store:
        for listener in ("ann", "bob", "eve"):
            for trial in study.trials:
                assignment = key.assignments[trial.id]
                side = {"ground_truth": "A", "silence": "B"}.get(assignment.a, draw.choice("AB"))
                side = "B" if assignment.b == "ground_truth" else side
                side = "tie" if assignment.a == assignment.b else side
                store.add(Vote(listener, trial.id, "AB", dict.fromkeys(CRITERIA, side), 4))  # type: ignore[arg-type]
    return study


def test_a_report_prints_the_gate_first_and_writes_three_files(
    study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["listen", "report", str(study.folder), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "15 of 15 decided trials" in printed
    assert printed.index("the gate is passed") < printed.index("three_stages")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "report.html"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["facts"]["voters"] == 3
    assert [voter["silence_failed"] for voter in report["voters"]] == [0, 0, 0]


def test_one_vote_in_two_files_counts_once(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, lines = tmp_path / "copy.sqlite", tmp_path / "votes.jsonl"
    with VoteStore.for_study(study.folder / "votes.sqlite", study) as store:
        store.export_lines(lines)
    assert main(["listen", "import", str(study.folder), str(lines), "--votes", str(copy)]) == 0
    assert f"{3 * len(study.trials)} new votes" in capsys.readouterr().out
    assert main(["listen", "import", str(study.folder), str(lines), "--votes", str(copy)]) == 0
    assert " 0 new votes" in capsys.readouterr().out
    votes = [str(study.folder / "votes.sqlite"), str(copy)]
    assert main(["listen", "report", str(study.folder), "--votes", *votes]) == 0
    assert "- pairs answered: 45" in capsys.readouterr().out


def test_results_of_webmushra_become_votes(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, database = tmp_path / "paired_comparison.csv", tmp_path / "new.sqlite"
    answers = {"rhythm": "correct", "harmony": "incorrect", "overall": "undecided"}
    with results.open("w", newline="") as file:
        writer = csv.writer(file)
        # the columns that webMUSHRA's service/write.php writes for paired comparisons: no session, one name for two
        head = ["session_test_id", "listener", "trial_id", "choice_reference", "choice_non_reference"]
        writer.writerow([*head, "choice_answer", "choice_time", "choice_comment"])
        for _ in range(2):
            for trial in study.trials:
                for criterion in CRITERIA[: 2 if trial is study.trials[-1] else 3]:  # the last trial was broken off
                    row = [study.study_id, "ann", f"{trial.id}-{criterion}", "reference", "B"]
                    writer.writerow([*row, answers[criterion], 2500, ""])
        writer.writerow([study.study_id, "eve", f"{study.trials[0].id}-overall", "reference", "B", "unknown", 9, ""])
    assert main(["listen", "import", str(study.folder), str(results), "--votes", str(database)]) == 0
    assert f"{2 * (len(study.trials) - 1)} new votes" in capsys.readouterr().out
    with VoteStore.for_study(database, study) as store:
        votes = store.votes()
    assert {vote.voter for vote in votes} == {"ann", "ann (2)"}
    assert all(vote.choices == {"rhythm": "A", "harmony": "B", "overall": "tie"} for vote in votes)
    assert all(vote.seconds == 7.5 for vote in votes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--votes", "absent.sqlite"], "absent.sqlite"),
        (["--key", "absent.json"], "absent.json"),
        (["--most-failed", "2"], "share from 0 to 1"),
        (["--most-failed", "nan"], "must be a finite number"),
        (["--seed", "-1"], "0 or more"),
        (["--voters", "nobody"], "no votes of nobody"),
        (["--key", "OTHER"], "another study"),
        (["--output", "/proc/report"], "--output /proc/report: cannot be written"),
    ],
)
def test_wrong_requests_are_one_message(
    study: Study, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_tiny_study(other, seed=5)
    arguments = [str(other / "key.json") if argument == "OTHER" else argument for argument in arguments]
    assert main(["listen", "report", str(study.folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column"),
        ("a,b\n1,2\n", "no column"),
        ("session_test_id,listener,trial_id,choice_answer\nother,ann,x,correct\n", "line 2"),
        ("session_test_id,listener,trial_id,choice_answer\nSTUDY,ann,x,correct\n", "unknown page"),
        ('session_test_id,listener,trial_id,choice_answer\n"STUDY', "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_damaged_results_are_refused(
    study: Study, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.csv"
    file.write_bytes(text.replace("STUDY", study.study_id).encode("utf-8", "surrogateescape"))
    assert main(["listen", "import", str(study.folder), str(file), "--votes", str(tmp_path / "v.sqlite")]) == 2
    assert message in capsys.readouterr().err


def test_a_study_without_votes_says_where_they_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    study, _ = make_tiny_study(folder)
    with VoteStore.for_study(folder / "votes.sqlite", study):
        pass
    assert main(["listen", "report", str(folder)]) == 2
    assert "listen serve" in capsys.readouterr().err
