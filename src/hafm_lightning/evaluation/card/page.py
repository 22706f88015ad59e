"""The card as one HTML page: tables, figures with intervals, players. It needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from hafm_lightning.evaluation.card.card import Card, Player, Table, cell_notes, cell_text, heading
from hafm_lightning.evaluation.card.figures import curve_figure, interval_figure, legend

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
    if card.absent:
        items = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in card.absent.items())
        body.append(f"<h2>Not made</h2><ul>{items}</ul>")
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
        parts.append(f"<h3>What the controls say</h3><ul>{items}</ul>")
    if table.players:
        parts.append(f"<h3>Listen</h3><div class='players'>{''.join(map(_player, table.players))}</div>")
    figures = [(column, interval_figure(table, column)) for column in table.columns]
    drawn = [
        f"<figure><figcaption>{escape(heading(column))}</figcaption>{figure}</figure>"
        for column, figure in figures
        if figure
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
