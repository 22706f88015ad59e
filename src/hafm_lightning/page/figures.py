"""Figures of pages: intervals, curves and histograms as shapes for inline SVG.

They are drawn here rather than by matplotlib: each is a few kilobytes, the same bytes on every machine, follows
light and dark themes, and carries its numbers as titles that browsers show. Values that are not finite are left out
and counted in the caption.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

WIDTH = 480
"""Of every figure, in CSS pixels at full size; a phone shows it at about 0.7, where letters are legible."""
LEFT, RIGHT = 60, 14
MARGIN = 24
"""Of an axis without numbers at its left: its own reach over its ends."""
ROW_HEIGHT, CURVE_HEIGHT, BARS_HEIGHT, LABEL_HEIGHT = 38, 260, 120, 14
FAR_SPANS = 3
"""A level this many times the curves' own span above them is named at the edge and not drawn."""
LARGEST = 1e100
"""Larger numbers are treated as infinite: differences of them overflow."""
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b")


@dataclass(frozen=True)
class Shape:
    """An SVG element: tag, attributes, and the letters of a ``text`` or the title of any other."""

    tag: str
    attributes: Mapping[str, str | float]
    text: str = ""


@dataclass(frozen=True)
class Figure:
    """Shapes under a caption; screen readers read ``summary``; ``legend`` names the colours in order."""

    caption: str
    summary: str
    height: float
    shapes: tuple[Shape, ...]
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its interval (None where there is none), and all three as text."""

    label: str
    text: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A line with its interval: ``label``, ``x``, ``y`` and the interval's ``low`` and ``high``."""

    label: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Plot:
    """Curves over one axis; ``baselines`` are level lines, such as the loss with null conditions."""

    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    baselines: dict[str, float] = field(default_factory=dict)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    # A span below the resolution of its ends would give equal marks.
    span = max(high - low, 1e-9 * max(abs(low), abs(high))) if high > low else abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Axis:
    """Values -> pixels from ``start`` to ``end``, with round marks."""

    marks: Sequence[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.marks[0]) / (self.marks[-1] - self.marks[0])
        return round(self.start + share * (self.end - self.start), 2)

    def drawn(self, top: float, bottom: float) -> list[Shape]:
        """Vertical lines with their numbers below them."""
        lines = [_line("grid", self(mark), self(mark), top, bottom) for mark in self.marks]
        return lines + [_text(self(mark), bottom + 16, f"{mark:g}", "middle") for mark in self.marks]


def intervals(caption: str, rows: Sequence[Interval]) -> Figure | None:
    """A dot with its whisker for each row; None where fewer than two have numbers, or all have the same."""
    bounds = [[n for n in (row.value, row.low, row.high) if n is not None] for row in rows]
    filled = [(row, numbers) for row, numbers in zip(rows, bounds, strict=True) if row.value is not None]
    shown = [(row, numbers) for row, numbers in filled if _finite(numbers)]
    all_numbers = [number for _, numbers in shown for number in numbers]
    if len(shown) < 2 or min(all_numbers) == max(all_numbers):
        return None
    x = _Axis(ticks(min(all_numbers), max(all_numbers)), MARGIN, WIDTH - MARGIN)
    shapes = x.drawn(2, ROW_HEIGHT * len(shown) + 4)
    for index, (row, numbers) in enumerate(shown):
        y = ROW_HEIGHT * index + 26
        shapes.append(_text(4, y - 11, row.label))
        if len(numbers) == 3:
            shapes.append(_line("whisker", x(numbers[1]), x(numbers[2]), y, y))
        shapes.append(_dot("dot", x(numbers[0]), y, f"{row.label}: {row.text}"))
    summary = "; ".join(f"{row.label} {row.text}" for row, _ in shown)
    caption = _counted(caption, len(filled) - len(shown))
    return Figure(caption, f"{caption}: {summary}", ROW_HEIGHT * len(shown) + 28, tuple(shapes))


def curves(plot: Plot) -> Figure:
    """Lines over one axis, with the bands of their intervals and level lines.

    A level far above the lines would flatten them: it is named at the upper edge instead, with its value.
    """
    points = [list(zip(c.x, c.y, c.low, c.high, strict=True)) for c in plot.curves]
    finite = [[point for point in line if _finite(point)] for line in points]
    levels = {name: level for name, level in plot.baselines.items() if _finite([level])}
    missing = sum(map(len, points)) - sum(map(len, finite)) + len(plot.baselines) - len(levels)
    caption = _counted(f"{plot.title} ({plot.y_label})", missing)
    if not any(finite):
        return _empty(caption)
    ys = [value for line in finite for point in line for value in point[1:]]
    far = max(ys) + FAR_SPANS * (max(ys) - min(ys))
    near = {name: level for name, level in levels.items() if level <= far}
    ys += near.values()
    xs = [point[0] for line in finite for point in line]
    bottom = CURVE_HEIGHT - 40
    x = _Axis(ticks(min(xs), max(xs)), LEFT, WIDTH - RIGHT)
    y = _Axis(ticks(min(ys), max(ys)), bottom, 12)

    def joined(pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x(a)},{y(b)}" for a, b in pairs)

    shapes = x.drawn(12, bottom)
    for mark in y.marks:
        shapes.append(_line("grid", LEFT, WIDTH - RIGHT, y(mark), y(mark)))
        shapes.append(_text(LEFT - 8, y(mark) + 4, f"{mark:g}", "end"))
    for index, (curve, line) in enumerate(zip(plot.curves, finite, strict=True)):
        colour = f"c{index % len(COLOURS)}"
        band = [(a, high) for a, _, _, high in line] + [(a, low) for a, _, low, _ in reversed(line)]
        shapes.append(Shape("polygon", {"class": f"band {colour}", "points": joined(band)}))
        middle = joined(point[:2] for point in line)
        shapes.append(Shape("polyline", {"class": f"curve {colour}", "points": middle}))
        for a, b, _, _ in line:
            title = f"{curve.label}, {plot.x_label} {a:g}: {b:.4f}"
            shapes.append(_dot(f"curve {colour}", x(a), y(b), title))
    shapes += [_line("level", LEFT, WIDTH - RIGHT, y(level), y(level)) for level in near.values()]
    texts = [f"{name}: {level:.3f}" for name, level in near.items()]
    heights = spread_labels([y(level) - 4 for level in near.values()])
    texts += [f"{name}: {level:.3f} ↑" for name, level in levels.items() if name not in near]
    heights += [12 + LABEL_HEIGHT * index for index in range(len(levels) - len(near))]
    shapes += [_text(WIDTH - RIGHT, height, text, "end") for height, text in zip(heights, texts, strict=True)]
    shapes.append(_text((LEFT + WIDTH - RIGHT) / 2, CURVE_HEIGHT - 6, plot.x_label, "middle"))
    labels = tuple(curve.label for curve in plot.curves)
    summary = f"{plot.title}: {plot.y_label} over {plot.x_label}"
    return Figure(caption, summary, CURVE_HEIGHT, tuple(shapes), labels if len(labels) > 1 else ())


def histogram(caption: str, edges: Sequence[float], counts: Sequence[int]) -> Figure:
    """Bars of equal width, as high as ``counts [n]``; the outermost of ``edges [n + 1]`` stand below them.

    Raises:
        ValueError: The edges do not fit the counts, or a count is negative or not finite.
    """
    if not counts:
        return _empty(caption)
    if len(edges) != len(counts) + 1 or not _finite(counts) or min(counts) < 0:
        raise ValueError(f"{caption}: expected counts >= 0 and one edge more, got {len(edges)} for {counts}")
    width, y = WIDTH / len(counts), BARS_HEIGHT + 14
    shapes = [_text(0, y, f"{edges[0]:g}"), _text(WIDTH, y, f"{edges[-1]:g}", "end")]
    for index, count in enumerate(counts):
        height = round(BARS_HEIGHT * count / max(*counts, 1), 2)
        box = {"x": index * width, "y": BARS_HEIGHT - height, "height": height, "width": max(width - 0.5, 0.3)}
        title = f"{edges[index]:g} to {edges[index + 1]:g}: {count}"
        shapes.append(Shape("rect", {"class": "bar", **{name: round(value, 2) for name, value in box.items()}}, title))
    summary = f"{caption}: {sum(counts)} from {edges[0]:g} to {edges[-1]:g}, at most {max(counts)} in a bar"
    return Figure(caption, summary, BARS_HEIGHT + 18, tuple(shapes))


def spread_labels(heights: Sequence[float]) -> list[float]:
    """Heights of labels, moved up just far enough that no two are closer than :data:`LABEL_HEIGHT`."""
    moved = list(heights)
    above = math.inf
    for index in sorted(range(len(moved)), key=lambda index: -moved[index]):
        moved[index] = above = min(moved[index], above - LABEL_HEIGHT)
    return moved


def _finite(numbers: Iterable[float]) -> bool:
    return all(abs(number) < LARGEST for number in numbers)


def _counted(caption: str, missing: int) -> str:
    return f"{caption} – not drawn, as not finite: {missing}" if missing else caption


def _empty(caption: str) -> Figure:
    return Figure(caption, f"{caption}: no values", 30, (_text(4, 20, "no values"),))


def _text(x: float, y: float, text: str, anchor: str = "start") -> Shape:
    return Shape("text", {"x": round(x, 2), "y": round(y, 2), "text-anchor": anchor}, text)


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> Shape:
    return Shape("line", {"class": style, "x1": x1, "x2": x2, "y1": y1, "y2": y2})


def _dot(style: str, x: float, y: float, title: str) -> Shape:
    return Shape("circle", {"class": style, "cx": x, "cy": y, "r": 3.5}, title)
