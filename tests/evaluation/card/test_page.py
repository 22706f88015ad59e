"""The card's page: every number, note and player of the card, in one file that stands alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cards import FAD, KEY, card_row
from html_pages import ParsedPage

from hafm_lightning.evaluation.card.card import Card, Player, Table, Value, cell_text, load_card, markdown
from hafm_lightning.evaluation.card.page import card_page, write_card
from hafm_lightning.page.document import render


def parsed(card: Card) -> ParsedPage:
    page = ParsedPage(render(card_page(card)))
    page.check_whole()
    page.check_narrow()
    return page


def test_three_files_hold_one_card(card: Card, tmp_path: Path) -> None:
    paths = write_card(card, tmp_path)
    assert [path.name for path in paths] == ["card.json", "card.md", "card.html"]
    assert load_card(paths[0]) == card
    assert paths[1].read_text() == markdown(card)
    assert paths[2].read_text() == render(card_page(card))


def test_page_is_whole_and_needs_nothing_else(card: Card) -> None:
    page = parsed(card)
    assert "http" not in page.source
    assert "key <MIREX>" in page.text  # escaped in the source, whole for the reader
    assert [attributes["src"] for attributes in page.all("audio")] == ["paper/a%20b.wav"]
    assert len(page.all("td", "best")) == 2
    assert len(page.all("td", "bad")) == 1
    assert {attributes["href"] for attributes in page.all("a")} == {"#paper", "#Probes", "#Left%20out"}
    for text in (
        "FAD alone is blind here",
        "system b: 2 failed: the vocal is silent",
        "33 segments of 3 s",
        "retrieval: no shards",
        "best by key (0.500)",
        "song@1.00",
        "coarse abc",
    ):
        assert text in page.text
    assert {"A distance.", "Agreement of keys."} <= {attributes.get("title") for attributes in page.all("th")}
    assert {"few rows", "no key"} <= {attributes.get("title") for attributes in page.all("td")}
    figures = [attributes["aria-label"] for attributes in page.all("svg")]
    assert len(figures) == 3
    assert "system a 0.000 [0.000, 0.250]" in figures[0]


def test_every_cell_is_on_the_page(card: Card) -> None:
    page = parsed(card)
    for row in card.tables[0].rows:
        for column in card.tables[0].columns:
            number, _, interval = cell_text(row.values[column.key], column.digits).partition(" ")
            assert f"{number}{interval}" in page.text


def test_every_point_of_a_probe_is_on_the_page(card: Card) -> None:
    page = parsed(card)
    assert len(page.all("circle", "curve")) == 3
    assert "another song: 0.750" in page.text
    assert "semantic, seconds late -1: 0.5000" in page.text


def test_a_column_without_differences_has_no_figure(card: Card) -> None:
    rows = [card_row(name, Value(1.0, 1.0, 1.0), Value(None, note="none")) for name in "ab"]
    assert not parsed(replace(card, tables=[Table("t", [], [FAD, KEY], rows)], plots=[])).all("svg")


def test_stages_are_not_ranked_against_each_other(card: Card) -> None:
    stages = replace(card, tables=[replace(card.tables[0], unit="stage")])
    page = parsed(stages)
    assert not page.all("td", "best")
    assert page.all("details") == [{}, {}, {}, {"open": ""}], "only the notes are open"
    assert page.text.count("stage") == 1
    assert "| stage | clips |" in markdown(stages)


def test_names_of_songs_and_systems_can_hold_anything(card: Card) -> None:
    name = "\"'><script>alert(1)</script> {{ 1 }} \udcff"
    row = replace(card_row("a", Value(1.0, note=name), Value(2.0)), label=name, failures={name: 1})
    table = Table(name, [name], [replace(FAD, label=name, note=name), KEY], [row], checks=[name])
    table = replace(table, players=[Player(name, "s", name, 0.5, {name: f"{name}.wav"})])
    page = parsed(Card(name, {name: name}, [table], [replace(card.plots[0], title=name)], {name: name}))
    assert page.text.count(name.replace("\udcff", "\\udcff")) >= 15


def test_an_empty_card_has_a_page() -> None:
    parsed(Card("empty", {}, []))
    parsed(Card("empty", {}, [Table("t", [], [], [])]))
