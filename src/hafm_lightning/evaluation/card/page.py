"""The card as one HTML page: tables, figures with intervals, players. It needs no network and runs no script.

Figures are inline SVG. Their colours come from the page's style sheet (``currentColor`` and classes), so that they
follow light and dark themes, and every figure carries its numbers as text, in titles that browsers show and screen
readers read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from hafm_lightning.evaluation.card.card import Card, Column, Player, Plot, Table, cell_notes, cell_text, heading

WIDTH = 640
LEFT = 210
RIGHT = 20
ROW_HEIGHT = 26
CURVE_HEIGHT = 260
CURVE_LEFT = 64
LABEL_HEIGHT = 14
FAR_SPANS = 3
"""A baseline this many times the curves' own span above them is named at the edge and not drawn."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --accent: #7aa7ff; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { margin-bottom: .3rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.2rem 0 .4rem; font-size: 1.05rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
thead th { vertical-align: bottom; } tbody tr:hover td { background: var(--soft); }
td small { display: block; opacity: .65; } td.best { font-weight: 700; } td.bad { color: #c2410c; font-weight: 700; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1rem; }
.probes { grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: currentColor; }
.grid { stroke: var(--line); } .whisker { stroke: currentColor; stroke-width: 2; } .dot { fill: var(--accent); }
.baseline { stroke: currentColor; stroke-dasharray: 5 4; }
.c0 { --c: #2563eb; } .c1 { --c: #d97706; } .c2 { --c: #059669; } .c3 { --c: #db2777; } .c4 { --c: #7c3aed; }
.c5 { --c: #64748b; } .curve { stroke: var(--c); fill: none; stroke-width: 2; } circle.curve { fill: var(--c); }
.band { fill: var(--c); opacity: .15; } .key { margin-right: 1rem; } .key::before { content: "■ "; color: var(--c); }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 1rem; }
.player { border: 1px solid var(--line); border-radius: 8px; padding: .7rem; }
.player label { display: block; font-size: .85rem; opacity: .75; margin-top: .4rem; } audio { width: 100%; }
img { max-width: 100%; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; } details { margin: .8rem 0; } code { overflow-wrap: anywhere; }
"""


def page(card: Card) -> str:
    """The whole page."""
    names = [table.name for table in card.tables] + (["Probes"] if card.plots else [])
    links = " · ".join(f"<a href='#{quote(name)}'>{escape(name)}</a>" for name in names)
    body = [f"<h1>{escape(card.title)}</h1>", f"<nav>{links}</nav>", _facts(card.facts)]
    body += [_table_section(table) for table in card.tables]
    if card.plots:
        body.append("<h2 id='Probes'>Probes</h2><div class='figures probes'>")
        for plot in card.plots:
            labels = [curve.label for curve in plot.curves]
            key = f"<div>{legend(labels)}</div>" if len(labels) > 1 else ""
            caption = f"<figcaption>{escape(plot.title)} <small>({escape(plot.y_label)})</small></figcaption>"
            body.append(f"<figure>{caption}{curve_figure(plot)}{key}</figure>")
        body.append("</div>")
    if card.pictures:
        body.append("<h2>Pictures</h2>")
        for caption, file in card.pictures.items():
            picture = f"<img src='{quote(file)}' alt='{escape(caption, quote=True)}'>"
            body.append(f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>")
    if card.absent:
        items = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in card.absent.items())
        body.append(f"<h2>Left out</h2><ul>{items}</ul>")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(card.title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table_section(table: Table) -> str:
    about = "".join(f"<li>{escape(line)}</li>" for line in table.about)
    parts = [f"<h2 id='{quote(table.name)}'>{escape(table.name)}</h2><ul>{about}</ul>"]
    parts += ["<div class='scroll'>", _table(table), "</div>"]
    if table.checks:
        items = "".join(f"<li>{escape(check)}</li>" for check in table.checks)
        parts.append(f"<h3>Controls</h3><ul>{items}</ul>")
    if table.players:
        parts.append(f"<h3>Players</h3><div class='players'>{''.join(map(_player, table.players))}</div>")
    drawn = [
        f"<figure><figcaption>{escape(heading(column))}</figcaption>{figure}</figure>"
        for column in table.columns
        if (figure := interval_figure(table, column))
    ]
    if drawn:
        summary = "<summary>Figures: 95 % intervals</summary>"
        shown = " open" if table.unit == "system" else ""
        parts.append(f"<details{shown}>{summary}<div class='figures'>{''.join(drawn)}</div></details>")
    meanings = "".join(f"<dt>{escape(c.label)}</dt><dd>{escape(c.note)}</dd>" for c in table.columns)
    parts.append(f"<details><summary>What the columns mean</summary><dl>{meanings}</dl></details>")
    notes = cell_notes(table)
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(f"<details open><summary>Notes ({len(notes)})</summary><ul>{items}</ul></details>")
    return "".join(parts)


def _table(table: Table) -> str:
    best = {}
    for column in table.columns:
        numbers = [value for row in table.rows if (value := row.values[column.key].value) is not None]
        if column.better and len(numbers) > 1 and table.unit == "system":
            best[column.key] = min(numbers) if column.better == "lower" else max(numbers)
    head = "".join(f"<th title='{escape(c.note, quote=True)}'>{escape(heading(c))}</th>" for c in table.columns)
    rows = []
    for row in table.rows:
        failed = f"<td class='bad'>{row.failed}</td>" if row.failed else "<td>0</td>"
        cells = []
        for column in table.columns:
            cell = row.values[column.key]
            text, _, interval = cell_text(cell, column.digits).partition(" ")
            mark = " class='best'" if cell.value is not None and cell.value == best.get(column.key) else ""
            title = f" title='{escape(cell.note, quote=True)}'" if cell.note else ""
            cells.append(f"<td{mark}{title}>{escape(text)}<small>{escape(interval)}</small></td>")
        rows.append(f"<tr><td>{escape(row.label)}</td><td>{row.clips}</td>{failed}{''.join(cells)}</tr>")
    first = f"<th>{escape(table.unit)}</th><th>clips</th><th>failed</th>"
    return f"<table><thead><tr>{first}{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _player(player: Player) -> str:
    sounds = "".join(
        f"<label>{escape(name)}<audio controls preload='none' src='{quote(file)}'></audio></label>"
        for name, file in player.sounds.items()
    )
    title = f"<strong>{escape(player.title)}</strong> ({player.score:.3f})"
    return f"<div class='player'>{title}<br><code>{escape(player.clip_id)}</code>{sounds}</div>"


def _facts(facts: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(str(name))}</dt><dd><code>{escape(_text(value))}</code></dd>" for name, value in facts.items()
    )
    return f"<details><summary>Versions, model, sampling</summary><dl>{items}</dl></details>"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return str(value)


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
    heights = spread_labels([y(level) - 4 for level in inside.values()])
    for height, (name, level) in zip(heights, inside.items(), strict=True):
        parts.append(_level_label(height, f"{name}: {level:.3f}"))
    outside = [f"{name}: {level:.3f} ↑" for name, level in plot.baselines.items() if level > far]
    parts += [_level_label(12 + LABEL_HEIGHT * index, text) for index, text in enumerate(outside)]
    middle = (CURVE_LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{CURVE_HEIGHT - 6}" text-anchor="middle">{escape(plot.x_label)}</text>')
    return _svg(f"{plot.title}: {plot.y_label} over {plot.x_label}", CURVE_HEIGHT, parts)


def spread_labels(heights: Sequence[float]) -> list[float]:
    """Heights of labels, moved upwards as little as needed: no two are closer than :data:`LABEL_HEIGHT`."""
    moved = list(heights)
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
