"""What controls say of columns, on tables whose answer is known."""

from __future__ import annotations

import pytest

from hafm_lightning.evaluation.card.card import Column, Row, Value
from hafm_lightning.evaluation.card.checks import control_checks

FAD = Column("fad_logmel", "FAD", "lower", "")
CHORDS = Column("chord_accuracy", "chords", "higher", "")
SPEED = Column("real_time_factor", "RTF", "lower", "")
COLUMNS = [FAD, CHORDS, SPEED]


def row(system: str, fad: tuple[float, float, float], chords: tuple[float, float, float]) -> Row:
    values = {"fad_logmel": Value(*fad), "chord_accuracy": Value(*chords), "real_time_factor": Value(None, note="none")}
    return Row(system, system.replace("_", " "), 9, 0, {}, {}, values)


def good() -> dict[str, Row]:
    rows = [
        row("ground_truth", (0.0, 0.0, 0.1), (0.9, 0.8, 1.0)),
        row("codec_8", (0.2, 0.1, 0.3), (0.85, 0.8, 0.9)),
        row("codec_4", (0.3, 0.2, 0.4), (0.8, 0.7, 0.9)),
        row("random", (0.1, 0.0, 0.2), (0.1, 0.0, 0.2)),
    ]
    return {row.system: row for row in rows}


def test_controls_in_order_say_so() -> None:
    first, second, third = control_checks(COLUMNS, list(good().values()))
    assert first == "Ground truth is best in every column."
    assert "Every distance ranks ground truth, codec 8 and codec 4" in second
    assert "is significantly above random pairing" in third


@pytest.mark.parametrize(
    ("changed", "line", "text"),
    [
        (row("codec_4", (0.15, 0.1, 0.3), (0.8, 0.7, 0.9)), 1, "Distances that do not rank 8 codebooks before 4: FAD."),
        (
            row("random", (0.1, 0.0, 0.2), (0.7, 0.5, 0.85)),
            2,
            "difference between true and random pairs: chords.",
        ),
        (row("random", (0.1, 0.0, 0.2), (1.5, 1.4, 1.6)), 0, "Scores above the ground truth: chords (random)."),
    ],
)
def test_controls_out_of_order_name_the_column(changed: Row, line: int, text: str) -> None:
    rows = good() | {changed.system: changed}
    found = control_checks(COLUMNS, list(rows.values()))
    assert text in found[line]
    assert "RTF" not in " ".join(found)


def test_only_questions_that_the_rows_allow_are_asked() -> None:
    rows = good()
    assert control_checks(COLUMNS, [rows["codec_8"], rows["random"]]) == []
    assert len(control_checks(COLUMNS, [rows["ground_truth"], rows["random"]])) == 2
    assert len(control_checks([CHORDS], list(rows.values()))) == 2  # no distance: nothing to say of the codec
