"""Figures: every number that is drawn is found again in the drawing, by scales fitted to the axis' own labels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from html_pages import ParsedPage

from hafm_lightning.page.document import Page, Section, render
from hafm_lightning.page.figures import (
    Curve,
    Figure,
    Interval,
    Plot,
    curves,
    histogram,
    intervals,
    spread_labels,
    ticks,
)

NAN, INF = math.nan, math.inf


def svg(figure: Figure) -> ParsedPage:
    """The figure as it stands in a page."""
    (drawn,) = re.findall(
        r"<figure>.*?</figure>", render(Page("t", sections=(Section("s", figures=(figure,)),))), re.DOTALL
    )
    return ParsedPage(drawn)


def scale(drawn: ParsedPage, axis: str) -> Callable[[str], float]:
    """Pixels -> values along an axis, a line through the numbers that stand at it."""
    pattern = r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="%s">(-?[\d.e+-]+)</text>'
    found = re.findall(pattern % ("middle" if axis == "x" else "end"), drawn.source)
    pixels = [float(x if axis == "x" else y) - (0 if axis == "x" else 4) for x, y, _ in found]
    values = [float(value) for *_, value in found]
    assert len(values) >= 2
    slope, offset = np.polyfit(pixels, values, 1)
    assert np.allclose(np.array(pixels) * slope + offset, values, atol=1e-3 * np.ptp(values)), (
        "marks at equal distances"
    )
    return lambda pixel: float(pixel) * slope + offset


def inside(drawn: ParsedPage) -> None:
    """No shape reaches over the edges of the drawing."""
    _, _, width, height = map(float, drawn.all("svg")[0]["viewbox"].split())
    for tag, attributes in drawn.tags:
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(attributes.get(name, 0)) <= width, (tag, attributes)
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(attributes.get(name, 0)) <= height, (tag, attributes)


@pytest.mark.parametrize("unit", [1.0, 1e-4, -250.0, 1e6])
def test_intervals_are_where_their_numbers_are(unit: float) -> None:
    numbers = [(0.31, 0.3, 0.42), (0.9, 0.55, 1.0), (0.62, 0.6, 0.64)]
    rows = [Interval(f"row {i}", f"text {i}", v * unit, a * unit, b * unit) for i, (v, a, b) in enumerate(numbers)]
    figure = intervals("caption", [*rows, Interval("no interval", "text", 0.5 * unit)])
    assert figure
    drawn = svg(figure)
    inside(drawn)
    value = scale(drawn, "x")
    near = {"abs": abs(unit) * 0.002}
    dots = drawn.all("circle")
    assert [value(dot["cx"]) for dot in dots] == pytest.approx([n[0] * unit for n in numbers] + [0.5 * unit], **near)
    whiskers = drawn.all("line", "whisker")
    assert [value(line["x1"]) for line in whiskers] == pytest.approx([n[1] * unit for n in numbers], **near)
    assert [value(line["x2"]) for line in whiskers] == pytest.approx([n[2] * unit for n in numbers], **near)
    assert [line["y1"] for line in whiskers] == [dot["cy"] for dot in dots[:3]], "each whisker through its dot"
    assert len({dot["cy"] for dot in dots}) == 4
    assert "row 1: text 1" in drawn.text
    assert drawn.all("svg")[0]["aria-label"] == "caption: row 0 text 0; row 1 text 1; row 2 text 2; no interval text"


def test_intervals_without_a_comparison_are_no_figure() -> None:
    same = Interval("a", "1", 1.0, 1.0, 1.0)
    assert intervals("c", []) is None
    assert intervals("c", [same]) is None
    assert intervals("c", [same, same]) is None
    assert intervals("c", [same, Interval("b", "–", None)]) is None
    assert intervals("c", [same, Interval("b", "nan", NAN)]) is None


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e300])
def test_intervals_that_are_not_finite_are_left_out_and_counted(bad: float) -> None:
    rows = [
        Interval("a", "1", 1.0),
        Interval("b", "2", 2.0),
        Interval("c", "3", 3.0, bad, 4.0),
        Interval("d", "–", None),
    ]
    figure = intervals("caption", rows)
    assert figure
    assert len(svg(figure).all("circle")) == 2
    assert figure.caption == "caption – not drawn, as not finite: 1"


def plot(levels: dict[str, float] | None = None) -> Plot:
    lines = [
        Curve("semantic", [-1.0, 0.0, 1.5], [0.5, 0.0, 0.25], [0.4, -0.1, 0.2], [0.65, 0.1, 0.3]),
        Curve("coarse", [-1.0, 0.5, 2.0], [0.1, 0.2, 0.35], [0.0, 0.1, 0.3], [0.2, 0.3, 0.4]),
    ]
    return Plot("Vocal moved in time", "seconds late", "nats", lines, levels or {})


def points(text: str) -> list[tuple[str, str]]:
    return [(x, y) for x, y in (pair.split(",") for pair in text.split())]


def test_curves_are_where_their_numbers_are() -> None:
    drawn = svg(curves(plot({"another song": 0.6})))
    inside(drawn)
    x, y = scale(drawn, "x"), scale(drawn, "y")
    for number, curve in enumerate(plot().curves):
        (line,) = drawn.all("polyline", f"c{number}")
        (band,) = drawn.all("polygon", f"c{number}")
        dots = [(dot["cx"], dot["cy"]) for dot in drawn.all("circle", f"c{number}")]
        assert points(line["points"]) == dots
        assert [x(a) for a, _ in dots] == pytest.approx(curve.x, abs=0.005)
        assert [y(b) for _, b in dots] == pytest.approx(curve.y, abs=0.002)
        around = points(band["points"])
        assert [x(a) for a, _ in around] == pytest.approx(curve.x + curve.x[::-1], abs=0.005)
        assert [y(b) for _, b in around] == pytest.approx(curve.high + curve.low[::-1], abs=0.002)
        for a, b in zip(curve.x, curve.y, strict=True):
            assert f"{curve.label}, seconds late {a:g}: {b:.4f}" in drawn.text
    (level,) = drawn.all("line", "level")
    assert y(level["y1"]) == y(level["y2"]) == pytest.approx(0.6, abs=0.002)
    assert "another song: 0.600" in drawn.text
    assert [key["class"] for key in drawn.all("span", "key")] == ["key c0", "key c1"]
    assert not svg(curves(replace(plot(), curves=plot().curves[:1]))).all("span", "key"), "one curve needs no legend"


def test_a_far_baseline_is_named_and_does_not_flatten_the_curves() -> None:
    drawn = svg(curves(plot({"another song": 0.75, "no conditions": 40.0, "nothing": 80.0})))
    assert len(drawn.all("line", "level")) == 1
    assert "no conditions: 40.000 ↑" in drawn.text
    heights = [float(dot["cy"]) for dot in drawn.all("circle")]
    assert max(heights) - min(heights) > 100
    (first,) = re.findall(r'y="(\d+)"[^>]*>no conditions', drawn.source)
    (second,) = re.findall(r'y="(\d+)"[^>]*>nothing', drawn.source)
    assert int(second) - int(first) >= 14


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e300])
def test_points_that_are_not_finite_are_left_out_and_counted(bad: float) -> None:
    lines = [Curve("a", [0.0, 1.0, 2.0], [1.0, bad, 3.0], [0.5, 0.5, 0.5], [4.0, 4.0, 4.0])]
    lines += [Curve("b", [0.0, bad], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])]
    figure = curves(Plot("loss", "step", "nats", lines, {"level": bad, "paper": 2.5}))
    drawn = svg(figure)
    inside(drawn)
    assert len(drawn.all("circle")) == 3
    assert len(drawn.all("line", "level")) == 1
    assert figure.caption == "loss (nats) – not drawn, as not finite: 3"
    assert not re.search(r"\b(nan|inf)\b", drawn.source.lower())


@pytest.mark.parametrize("lines", [[], [Curve("a", [], [], [], [])], [Curve("a", [0.0], [NAN], [0.0], [0.0])]])
def test_curves_without_a_point_say_so(lines: list[Curve]) -> None:
    assert "no values" in svg(curves(Plot("loss", "step", "nats", lines, {"paper": 2.0}))).text


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-30, 1e90])
def test_one_point_and_level_curves_are_drawn(value: float) -> None:
    for xs in ([value], [value, value]):
        same = [value] * len(xs)
        drawn = svg(curves(Plot("t", "x", "y", [Curve("a", xs, same, same, same)])))
        inside(drawn)
        assert len(drawn.all("circle")) == len(xs)


def test_histogram_bars_are_as_high_as_their_counts() -> None:
    values = np.random.default_rng(0).normal(size=500).clip(-2.99, 2.99)
    counts, edges = np.histogram(values, np.linspace(-3, 3, 13))
    drawn = svg(histogram("loudness", edges.tolist(), counts.tolist()))
    inside(drawn)
    bars = drawn.all("rect")
    heights = np.array([float(bar["height"]) for bar in bars])
    assert heights / heights.sum() == pytest.approx(counts / 500, abs=1e-4)
    assert len({round(float(bar["y"]) + float(bar["height"]), 1) for bar in bars}) == 1, "all stand on one line"
    lefts = [float(bar["x"]) for bar in bars]
    assert np.diff(lefts) == pytest.approx(np.full(11, lefts[1]), abs=0.011)
    for index, count in enumerate(counts):
        inside_bin = ((values >= edges[index]) & (values < edges[index + 1])).sum()
        assert f"{edges[index]:g} to {edges[index + 1]:g}: {inside_bin}" in drawn.text
        assert count == inside_bin
    assert drawn.all("svg")[0]["aria-label"] == f"loudness: 500 from -3 to 3, at most {counts.max()} in a bar"


def test_histograms_of_nothing() -> None:
    assert "no values" in svg(histogram("c", [], [])).text
    zeros = svg(histogram("c", [0.0, 1.0, 2.0], [0, 0]))
    assert [float(bar["height"]) for bar in zeros.all("rect")] == [0, 0]


@pytest.mark.parametrize(
    ("edges", "counts"), [([0.0, 1.0], [1, 2]), ([0.0, 1.0, 2.0, 3.0], [1, 2]), ([0.0, 1.0], [-1]), ([0.0, 1.0], [NAN])]
)
def test_counts_that_are_none_are_refused(edges: list[float], counts: list[int]) -> None:
    with pytest.raises(ValueError, match="caption: expected counts"):
        histogram("caption", edges, counts)


def test_labels_of_close_baselines_do_not_overlap() -> None:
    assert spread_labels([100.0, 98.0, 20.0]) == [100.0, 86.0, 20.0]
    assert spread_labels([90.0, 100.0, 95.0]) == [72.0, 100.0, 86.0]
    assert spread_labels([]) == []


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (-3.2, 17.0), (5.0, 5.0), (-5.0, -5.0), (0.0, 0.0), (1e-6, 3e-6), (1e-14, 3e-14), (1e9, 1e9 + 1)],
)
def test_ticks_span_the_values_in_round_steps(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low * (1 + 1e-12 * math.copysign(1, low))
    assert marks[-1] >= high * (1 - 1e-12 * math.copysign(1, high))
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(round_step) for round_step in (1, 2, 5, 10))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0 + 1e-15), (1e90, 1e90 * (1 + 1e-15)), (-1e99, 1e99), (1e-300, 2e-300)]
)
def test_ticks_differ_even_where_values_hardly_do(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert len(marks) <= 8
    assert all(a < b for a, b in itertools.pairwise(marks))
