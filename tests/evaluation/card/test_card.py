"""The card: no NaN, nothing lost between JSON and Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from cards import FAD, card_row
from html_pages import ParsedPage

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import (
    Card,
    Table,
    Value,
    cell_notes,
    cell_text,
    load_card,
    markdown,
)
from hafm_lightning.evaluation.card.page import write_card


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_cell_holds_nan(number: float) -> None:
    with pytest.raises(ValueError, match="a note that gives the reason"):
        Value(number)
    with pytest.raises(ValueError, match="a note that gives the reason"):
        Value(1.0, low=number)
    with pytest.raises(ValueError, match="needs a note"):
        Value(None)


def test_json_round_trip(card: Card, tmp_path: Path) -> None:
    paths = write_card(card, tmp_path)
    assert [path.name for path in paths] == ["card.json", "card.md", "card.html"]
    assert load_card(paths[0]) == card
    (tmp_path / "newer.json").write_text(json.dumps(card.as_dict() | {"format": 99}))
    with pytest.raises(RequestError, match="update"):
        load_card(tmp_path / "newer.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(RequestError, match="not a card"):
        load_card(tmp_path / "bad.json")


def test_markdown_shows_intervals_failures_and_reasons(card: Card) -> None:
    text = markdown(card)
    assert "| system | clips | failed | FAD logmel ↓ | key <MIREX> ↑ |" in text
    assert "| system b | 33 | 2 | 1.500 [1.250, 1.750] | – |" in text
    assert "- system b: 2 failed: the vocal is silent" in text
    assert "- FAD logmel of system b; system c: few rows" in text
    assert "- retrieval: no shards" in text
    assert "| -1 | semantic | 0.5000 [0.4000, 0.6000] |" in text
    assert "nan" not in text.lower().replace("another", "")


def test_notes_that_hold_for_all_rows_are_said_once(card: Card) -> None:
    assert cell_notes(card.tables[0]) == [
        "FAD logmel of system b; system c: few rows",
        "key <MIREX> of system b: no key",
        "system b: 2 failed: the vocal is silent",
    ]
    alike = Table("t", [], [FAD], [card_row(name, Value(1.0, note="few rows"), Value(1.0)) for name in "ab"])
    assert cell_notes(alike) == ["FAD logmel: few rows"]


def test_cells_read_as_numbers_with_intervals() -> None:
    assert cell_text(Value(1.23456, 1.0, 1.5), 2) == "1.23 [1.00, 1.50]"
    assert cell_text(Value(1.23456), 1) == "1.2"
    assert cell_text(Value(None, note="why"), 3) == "–"


def test_pictures_are_shown_and_leave_other_cards_as_they_were(card: Card, tmp_path: Path) -> None:
    assert "pictures" not in card.as_dict()  # a card without pictures can be read by older versions
    pictured = replace(card, pictures={"Loss <1>": "curves/a b.png"})
    paths = write_card(pictured, tmp_path)
    assert load_card(paths[0]) == pictured
    assert "![Loss <1>](<curves/a b.png>)" in paths[1].read_text()
    page = ParsedPage(paths[2].read_text())
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert (picture["src"], picture["alt"]) == ("curves/a%20b.png", "Loss <1>")
