"""An uninformative column says so wherever a card is read; cards of earlier versions load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cards import FAD, KEY

from hafm_lightning.evaluation.card.card import Card, load_card, markdown
from hafm_lightning.evaluation.card.dashboard import meaning_rows, table_rows
from hafm_lightning.evaluation.card.page import write_card

REASON = "uninformative on these clips: codec is not significantly better than random (0.01 [-0.02, 0.04])"


@pytest.fixture
def judged(card: Card) -> Card:
    columns = [
        replace(FAD, informative=True, judgement="informative"),
        replace(KEY, informative=False, judgement=REASON),
    ]
    verdict = "three stages, from random pairing (0 %) to codec (100 %): chroma 64 % [51, 77]."
    return replace(card, tables=[replace(card.tables[0], columns=columns, verdicts=[verdict])])


def test_a_column_is_marked_in_json_markdown_page_and_dashboard(judged: Card, tmp_path: Path) -> None:
    write_card(judged, tmp_path)
    columns = json.loads((tmp_path / "card.json").read_text())["tables"][0]["columns"]
    assert [(column["informative"], column["judgement"]) for column in columns] == [
        (True, "informative"),
        (False, REASON),
    ]
    assert load_card(tmp_path / "card.json") == judged
    text = (tmp_path / "card.md").read_text()
    assert "↓ | key <MIREX> ↑ (uninformative) |" in text
    assert "Agreement of keys. Uninformative on these clips: codec" in text
    page = (tmp_path / "card.html").read_text()
    assert "key &lt;MIREX&gt; ↑ (uninformative)" in page
    assert "FAD ↓ (uninformative)" not in page
    names, _ = table_rows(judged.tables[0])
    assert names[3:] == ["fad_logmel", "fad_logmel_low", "fad_logmel_high"] + [
        f"key_score{bound} (uninformative)" for bound in ("", "_low", "_high")
    ]
    assert [row[2] for row in meaning_rows(judged.tables[0])] == ["yes", "no"]


def test_the_verdict_on_the_model_is_shown_and_an_uninformative_column_has_no_best(
    judged: Card, tmp_path: Path
) -> None:
    write_card(judged, tmp_path)
    assert "64 % [51, 77]" in markdown(judged)
    page = (tmp_path / "card.html").read_text()
    assert "64 % [51, 77]" in page
    plain = replace(judged, tables=[replace(judged.tables[0], columns=[FAD, KEY])])
    write_card(plain, tmp_path / "plain")
    assert page.count('class="best"') < (tmp_path / "plain" / "card.html").read_text().count('class="best"')


def test_a_card_of_version_1_loads(card: Card, tmp_path: Path) -> None:
    content = card.as_dict() | {"format": 1}
    for table in content["tables"]:
        del table["verdicts"]
        for column in table["columns"]:
            del column["informative"], column["judgement"]
    (tmp_path / "card.json").write_text(json.dumps(content))
    assert load_card(tmp_path / "card.json") == card
