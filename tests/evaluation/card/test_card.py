"""The card: no NaN, nothing lost between JSON and page, figures with their numbers, W&B offline."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import (
    Card,
    Column,
    Curve,
    Player,
    Plot,
    Row,
    Table,
    Value,
    cell_notes,
    cell_text,
    load_card,
    markdown,
    write_card,
)
from hafm_lightning.evaluation.card.dashboard import log_to_wandb, plot_rows, table_rows
from hafm_lightning.evaluation.card.figures import curve_figure, interval_figure, spread_labels, ticks
from hafm_lightning.evaluation.card.page import page as card_page

FAD = Column("fad_logmel", "FAD logmel", "lower", "A distance.")
KEY = Column("key_score", "key <MIREX>", "higher", "Agreement of keys.")


def row(system: str, fad: Value, key: Value, failures: dict[str, int] | None = None) -> Row:
    failures = failures or {}
    values = {"fad_logmel": fad, "key_score": key}
    return Row(system, f"system {system}", 33, sum(failures.values()), failures, {"seed": 0}, values)


@pytest.fixture
def card(tmp_path: Path) -> Card:
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a b.wav").write_bytes(b"RIFF")
    table = Table(
        "paper",
        ["33 segments of 3 s"],
        [FAD, KEY],
        [
            row("a", Value(0.0, 0.0, 0.25), Value(0.9, 0.8, 1.0)),
            row("b", Value(1.5, 1.25, 1.75, "few rows"), Value(None, note="no key"), {"the vocal is silent": 2}),
            row("c", Value(2.0, note="few rows"), Value(0.1, 0.0, 0.2)),
        ],
        [Player("best by key", "b", "song@1.00", 0.5, {"vocal": "paper/a b.wav"})],
        checks=["FAD alone is blind here"],
    )
    curve = Curve("semantic", [-1.0, 0.0, 1.0], [0.5, 0.0, 0.25], [0.4, 0.0, 0.2], [0.6, 0.0, 0.3])
    plot = Plot("Vocal moved in time", "seconds late", "nats", [curve], {"another song": 0.75})
    return Card("Title", {"torch": "2", "model": {"coarse": "abc"}}, [table], [plot], {"retrieval": "no shards"})


class Page(HTMLParser):
    """Checks that tags close in order; collects text and attributes."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline", "polygon"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "circle" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_cell_holds_nan(number: float) -> None:
    with pytest.raises(ValueError, match="say why it is empty"):
        Value(number)
    with pytest.raises(ValueError, match="say why it is empty"):
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
    alike = Table("t", [], [FAD], [row(name, Value(1.0, note="few rows"), Value(1.0)) for name in "ab"])
    assert cell_notes(alike) == ["FAD logmel: few rows"]


def test_page_is_whole_and_needs_nothing_else(card: Card, tmp_path: Path) -> None:
    text = write_card(card, tmp_path)[2].read_text()
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert "link" not in names
    assert "http" not in text
    assert "key <MIREX>" in page.text  # escaped in the source, whole for the reader
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "audio"]
    assert sources == ["paper/a%20b.wav"]
    best = [attributes for tag, attributes in page.tags if tag == "td" and attributes.get("class") == "best"]
    assert len(best) == 2
    assert "FAD alone is blind here" in page.text
    targets = {attributes.get("id") for tag, attributes in page.tags if tag == "h2"}
    assert {(attributes["href"] or "")[1:] for tag, attributes in page.tags if tag == "a"} <= targets
    assert "system b: 2 failed: the vocal is silent" in page.text
    figures = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 3
    assert "system a 0.000 [0.000, 0.250]" in (figures[0] or "")


def test_stages_are_not_ranked_against_each_other(card: Card) -> None:
    stages = replace(card.tables[0], unit="stage")
    found = Page(card_page(replace(card, tables=[stages])))
    assert not any(attributes.get("class") == "best" for _, attributes in found.tags)
    assert "| stage | clips |" in markdown(replace(card, tables=[stages]))


def test_a_column_without_differences_has_no_figure() -> None:
    rows = [row(name, Value(1.0, 1.0, 1.0), Value(0.5)) for name in "ab"]
    assert interval_figure(Table("t", [], [FAD], rows), FAD) == ""


def test_interval_figure_places_dots_in_proportion(card: Card) -> None:
    table = card.tables[0]
    page = Page(interval_figure(table, FAD))
    dots = [float(attributes["cx"] or 0) for tag, attributes in page.tags if tag == "circle"]
    assert len(dots) == 3
    assert (dots[1] - dots[0]) / (dots[2] - dots[0]) == pytest.approx(1.5 / 2.0, abs=0.01)
    whiskers = [attributes for tag, attributes in page.tags if attributes.get("class") == "whisker"]
    assert len(whiskers) == 2
    assert interval_figure(Table("t", [], [KEY], table.rows[:2]), KEY) == ""  # one number alone is no comparison


def test_curve_figure_has_every_point_and_the_baseline(card: Card) -> None:
    page = Page(curve_figure(card.plots[0]))
    assert sum(tag == "circle" for tag, _ in page.tags) == 3
    assert "another song: 0.750" in page.text
    assert "semantic, seconds late -1: 0.5000" in page.text


def test_a_far_baseline_is_named_and_does_not_flatten_the_curves(card: Card) -> None:
    plot = replace(card.plots[0], baselines={"another song": 0.75, "no conditions": 40.0})
    page = Page(curve_figure(plot))
    assert sum(attributes.get("class") == "baseline" for tag, attributes in page.tags if tag == "line") == 1
    assert "no conditions: 40.000 ↑" in page.text
    heights = [float(attributes["cy"] or 0) for tag, attributes in page.tags if tag == "circle"]
    assert max(heights) - min(heights) > 100


def test_labels_of_close_baselines_do_not_overlap() -> None:
    assert spread_labels([100.0, 98.0, 20.0]) == [100.0, 86.0, 20.0]
    assert spread_labels([90.0, 100.0, 95.0]) == [72.0, 100.0, 86.0]
    assert spread_labels([]) == []


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 17.0), (5.0, 5.0), (0.0, 0.0), (1e-6, 3e-6)])
def test_ticks_span_the_values_in_round_steps(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low + 1e-12
    assert marks[-1] >= high - 1e-12
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert max(steps) == pytest.approx(min(steps))
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(round_step) for round_step in (1, 2, 5, 10))


def test_cells_read_as_numbers_with_intervals() -> None:
    assert cell_text(Value(1.23456, 1.0, 1.5), 2) == "1.23 [1.00, 1.50]"
    assert cell_text(Value(1.23456), 1) == "1.2"
    assert cell_text(Value(None, note="why"), 3) == "–"


def test_weights_and_biases_get_tables_and_probes_offline(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert "offline" in log_to_wandb(card, tmp_path, "test")
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluate/*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:6] == ["system", "clips", "failed", "fad_logmel", "fad_logmel_low", "fad_logmel_high"]
    assert content["data"][1][:6] == ["system b", 33, 2, 1.5, 1.25, 1.75]
    (probe,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluate/probes/*.table.json")
    content = json.loads(probe.read_text())
    assert content["columns"] == ["curve", "x", "y", "low", "high"]
    assert content["data"][0] == ["semantic", -1.0, 0.5, 0.4, 0.6]
    assert content["data"][-1] == ["another song", None, 0.75, None, None]


def test_dashboard_rows_hold_every_number_of_the_card(card: Card) -> None:
    columns, rows = table_rows(card.tables[0])
    assert all(len(row) == len(columns) for row in rows)
    assert rows[1] == ["system b", 33, 2, 1.5, 1.25, 1.75, None, None, None]
    assert len(plot_rows(card.plots[0])) == 4
