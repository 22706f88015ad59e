"""Figures of the card as inline SVG: intervals by system, and curves with bands. No script, no image files.

Colours come from the page's style sheet (``currentColor`` and classes), so that figures follow light and dark themes.
Every figure carries its numbers as text, in titles that browsers show and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from hafm_lightning.evaluation.card.card import Column, Plot, Table, cell_text

WIDTH = 640
LEFT = 210
RIGHT = 20
ROW_HEIGHT = 26
CURVE_HEIGHT = 260
CURVE_LEFT = 64
LABEL_HEIGHT = 14
FAR_SPANS = 3
"""A baseline so many times the curves' own span above them is named at the edge and not drawn."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def interval_figure(table: Table, column: Column) -> str:
    """Dots with whiskers, one line a row; empty text where fewer than two cells hold numbers, or all hold the same."""
    rows = [(row.label, row.values[column.key]) for row in table.rows]
    filled = [(label, cell, cell.value) for label, cell in rows if cell.value is not None]
    if len(filled) < 2:
        return ""
    bounds = [bound for _, cell, value in filled for bound in (value, cell.low, cell.high) if bound is not None]
    if min(bounds) == max(bounds):
        return ""
    marks = ticks(min(bounds), max(bounds))
    height = ROW_HEIGHT * len(filled) + 34

    def x(value: float) -> float:
        return LEFT + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - LEFT - RIGHT)

    parts = [_axis_line(x(mark), mark, 6, height - 28, height - 10) for mark in marks]
    for index, (label, cell, value) in enumerate(filled):
        y = 18 + ROW_HEIGHT * index
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        if cell.low is not None and cell.high is not None:
            parts.append(f'<line class="whisker" x1="{x(cell.low):.1f}" x2="{x(cell.high):.1f}" y1="{y}" y2="{y}"/>')
        title = escape(f"{label}: {cell_text(cell, column.digits)}")
        parts.append(f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="4"><title>{title}</title></circle>')
    summary = "; ".join(f"{label} {cell_text(cell, column.digits)}" for label, cell, _ in filled)
    return _svg(f"{column.label}: {summary}", height, parts)


def curve_figure(plot: Plot) -> str:
    """Lines over one axis, with the band of each interval and level baselines.

    A baseline far above the curves would flatten them: it is named at the upper edge instead, with its value.
    """
    xs = [value for curve in plot.curves for value in curve.x]
    ys = [value for curve in plot.curves for part in (curve.low, curve.high) for value in part]
    far = max(ys) + FAR_SPANS * (max(ys) - min(ys))
    ys += [level for level in plot.baselines.values() if level <= far]
    x_marks, y_marks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    bottom = CURVE_HEIGHT - 40

    def x(value: float) -> float:
        return CURVE_LEFT + (value - x_marks[0]) / (x_marks[-1] - x_marks[0]) * (WIDTH - CURVE_LEFT - RIGHT)

    def y(value: float) -> float:
        return bottom - (value - y_marks[0]) / (y_marks[-1] - y_marks[0]) * (bottom - 12)

    parts = [_axis_line(x(mark), mark, 12, bottom, bottom + 16) for mark in x_marks]
    for mark in y_marks:
        parts.append(_level_line(y(mark), "grid"))
        parts.append(f'<text x="{CURVE_LEFT - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for index, curve in enumerate(plot.curves):
        style = f"curve c{index % 6}"
        band = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(curve.x, curve.high, strict=True)]
        band += [f"{x(a):.1f},{y(b):.1f}" for a, b in reversed(list(zip(curve.x, curve.low, strict=True)))]
        parts.append(f'<polygon class="band c{index % 6}" points="{" ".join(band)}"/>')
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(curve.x, curve.y, strict=True))
        parts.append(f'<polyline class="{style}" points="{line}"/>')
        for a, b in zip(curve.x, curve.y, strict=True):
            title = escape(f"{curve.label}, {plot.x_label} {a:g}: {b:.4f}")
            parts.append(
                f'<circle class="{style}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"><title>{title}</title></circle>'
            )
    inside = {name: level for name, level in plot.baselines.items() if level <= far}
    parts += [_level_line(y(level), "baseline") for level in inside.values()]
    places = spread_labels([y(level) - 4 for level in inside.values()])
    for place, (name, level) in zip(places, inside.items(), strict=True):
        parts.append(_level_label(place, f"{name}: {level:.3f}"))
    outside = [f"{name}: {level:.3f} ↑" for name, level in plot.baselines.items() if level > far]
    parts += [_level_label(12 + LABEL_HEIGHT * index, text) for index, text in enumerate(outside)]
    middle = (CURVE_LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{CURVE_HEIGHT - 6}" text-anchor="middle">{escape(plot.x_label)}</text>')
    return _svg(f"{plot.title}: {plot.y_label} over {plot.x_label}", CURVE_HEIGHT, parts)


def spread_labels(places: Sequence[float]) -> list[float]:
    """Heights of labels, moved upwards just so far that no two are closer than :data:`LABEL_HEIGHT`."""
    moved = list(places)
    above = math.inf
    for index in sorted(range(len(moved)), key=lambda index: -moved[index]):
        moved[index] = above = min(moved[index], above - LABEL_HEIGHT)
    return moved


def legend(labels: Sequence[str]) -> str:
    """Names of curves beside their colours."""
    return "".join(f'<span class="key c{index % 6}">{escape(label)}</span>' for index, label in enumerate(labels))


def _axis_line(x: float, mark: float, top: float, bottom: float, text: float) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{text}" text-anchor="middle">{mark:g}</text>'
    )


def _level_line(y: float, style: str) -> str:
    return f'<line class="{style}" x1="{CURVE_LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _level_label(y: float, text: str) -> str:
    return f'<text x="{WIDTH - RIGHT}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>'


def _svg(label: str, height: float, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height}">{body}</svg>'
