"""The page: whole, without a network; figures with their numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_card import FAD, KEY, Page, row

from hafm_lightning.evaluation.card import write_card
from hafm_lightning.evaluation.card.card import (
    Card,
    Table,
    Value,
    markdown,
)
from hafm_lightning.evaluation.card.page import curve_figure, interval_figure, spread_labels, ticks
from hafm_lightning.evaluation.card.page import page as card_page


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
