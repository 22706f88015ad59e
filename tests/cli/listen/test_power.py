"""``listen power``: the table, the other way round, and bad input."""

from __future__ import annotations

from typing import Any

import pytest

from hafm_lightning.cli import main
from hafm_lightning.listening.power import Question, trials_for


def test_the_table_names_trials_and_listeners(capsys: Any) -> None:
    assert main(["listen", "power", "--share", "0.65", "0.55", "--clips", "33"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "power 0.8, two-sided binomial test at 0.05, 0% ties"
    row = lines[2].split()
    assert row[:3] == ["65.0%", str(trials_for(Question(0.65))), "85"]
    assert int(row[3]) >= 3
    assert "none suffice: " in lines[3]


def test_what_a_number_of_trials_can_show(capsys: Any) -> None:
    assert main(["listen", "power", "--trials", "99", "--share", "0.65"]) == 0
    text = capsys.readouterr().out
    assert "a true share of 65.0% is shown with probability 0.8" in text
    assert "shares of 64." in text or "shares of 65.0%" in text


@pytest.mark.parametrize(
    "options",
    [
        ["--share", "0.4"],
        ["--ties", "1"],
        ["--alpha", "x"],
        ["--trials", "0"],
        ["--clips", "0"],
        ["--clips", "3", "--each", "4"],
    ],
)
def test_wrong_numbers_are_refused(options: list[str], capsys: Any) -> None:
    assert main(["listen", "power", *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 5
