"""The summary of a card: main columns, verdicts, what is uninformative, and no more."""

from __future__ import annotations

from hafm_lightning.cli.evaluate.summary import aligned, main_columns, summary
from hafm_lightning.evaluation.card.card import Card, Column, Row, Table, Value

KEYS = (
    "fad_logmel",
    "kd_logmel",
    "beat_cmlt",
    "chroma_cosine",
    "onset_f1",
    "key_score",
    "beat_f_measure",
    "chord_accuracy",
)


def card() -> Card:
    columns = [
        Column(
            key,
            key,
            "lower" if key.startswith(("fad", "kd")) else "higher",
            f"About {key}.",
            informative=key != "key_score",
        )
        for key in (*KEYS, "empty")
    ]
    values = {key: Value(0.5, 0.4, 0.6) for key in KEYS} | {"empty": Value(None, note="nothing there")}
    rows = [Row(name, name, 6, failed, {}, {}, values) for name, failed in (("truth", 0), ("three stages", 2))]
    table = Table("short", ["6 segments"], columns, rows, verdicts=["the model is half way"])
    return Card("A card", {"torch": "2"}, [table], absent={"retrieval": "no shards"})


def test_it_shows_the_main_columns_and_the_verdicts() -> None:
    text = summary(card())
    (table,) = card().tables
    shown = ["fad_logmel", "kd_logmel", "chroma_cosine", "onset_f1", "beat_f_measure", "chord_accuracy"]
    assert [column.key for column in main_columns(table)] == shown
    assert "0.500" in text
    assert "[0.400" not in text, "intervals are in the files"
    assert "- the model is half way" in text
    assert "- uninformative on these clips, ignore: key_score" in text
    assert "- 2 failed clips count as silence" in text
    assert "- retrieval: no shards" in text
    assert "About" not in text


def test_columns_stand_below_each_other() -> None:
    assert aligned([["a", "12"], ["long", "3"]]) == ["a     12", "long   3"]
