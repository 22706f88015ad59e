"""The three forms of a report show the same facts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from study_fixtures import made_key, made_study, made_vote

from hafm_lightning.listening.report.output import grids_of, log_to_wandb, markdown, write_report
from hafm_lightning.listening.report.report import Report, build_report
from hafm_lightning.listening.vote import Failure


@pytest.fixture(scope="module")
def report() -> Report:
    study = made_study(12)
    systems = ("three_stages", "ground_truth", "random")
    pairs = [("three_stages", "ground_truth"), ("three_stages", "random"), ("ground_truth", "random")]
    key = made_key(study, systems, [(f"a|b <i>{clip}</i>", *pair) for pair in pairs for clip in range(4)])
    votes = []
    for number, trial in enumerate(study.trials):
        for listener in ("ann", "bob"):
            side = "tie" if number % 5 == 4 else "A" if number % 3 else "B"
            votes.append(made_vote(listener, trial.id, side, "AB", 3))
    return build_report(study, key, votes, [Failure("judge:x", study.trials[0].id, "AB", "no JSON")])


def test_the_gate_comes_before_every_number_of_a_model(report: Report) -> None:
    text = markdown(report)
    assert report.gate.sentence in text
    assert text.index(report.gate.sentence) < text.index("three_stages")


def test_every_cell_is_in_markdown_and_on_the_page(report: Report, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    text, page = paths[1].read_text(), paths[2].read_text()
    for grid in grids_of(report):
        assert grid.rows
        for row in grid.rows:
            for cell in row:
                assert cell.replace("<", "&lt;").replace("|", "\\|") in text
    for system in ("three_stages", "ground_truth", "random"):
        assert page.count(system) > 3
    assert page.count("<svg") >= 6  # shares and strengths for each criterion
    assert "<i>" not in page.replace("&lt;i&gt;", "")
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page)


def test_a_listeners_name_stays_text(report: Report) -> None:
    name = "![x](http://example.org/x.png) <script>x</script> &lt; Ünï"
    text = markdown(replace(report, voters=(replace(report.voters[0], voter=name),), title="a\n# b"))
    assert "](" not in text
    assert "<" not in text
    assert "&amp;lt; Ünï" in text
    assert text.startswith("# a # b\n")


def test_a_report_without_any_verdict_is_written(tmp_path: Path) -> None:
    study = made_study(2)
    key = made_key(
        study, ("ground_truth", "random"), [("a", "ground_truth", "random"), ("a", "silence", "ground_truth")]
    )
    silence = [made_vote("deaf", study.trials[1].id, "tie", "AB"), made_vote("deaf", study.trials[0].id, "A", "AB")]
    report = build_report(study, key, silence, [Failure("judge:x", study.trials[0].id, "AB", "prose")], most_failed=0)
    assert report.facts["voters left out"] == 1
    assert report.gate.passed is None
    assert all(path.stat().st_size for path in write_report(report, tmp_path))


def test_json_holds_plain_numbers(report: Report, tmp_path: Path) -> None:
    content = json.loads(write_report(report, tmp_path)[0].read_text(), parse_constant=pytest.fail)
    assert content["format"] == 1
    overall = next(tables for tables in content["criteria"] if tables["criterion"] == "overall")
    assert sum(row["wins"] for row in overall["wins"]) + overall["pairs"][0]["ties"] * 1 <= 24
    assert content["gate"]["sentence"] == report.gate.sentence


def test_the_table_goes_to_wandb_offline(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    line = log_to_wandb(report, tmp_path, "listening")
    assert "offline" in line
    assert list(tmp_path.rglob("*.wandb"))
    tables = [path.name for path in tmp_path.rglob("*.table.json")]
    assert len(tables) == len(grids_of(report))
