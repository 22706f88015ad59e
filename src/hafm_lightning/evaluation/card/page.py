"""The card as an HTML page, and the card's three files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hafm_lightning.evaluation.card import card as cards
from hafm_lightning.evaluation.card.card import Card, Table, cell_notes, cell_text, definition, heading, plain
from hafm_lightning.files import write_atomic, write_json
from hafm_lightning.page import document
from hafm_lightning.page.document import Cell, Page, Player, Section
from hafm_lightning.page.figures import Figure, Interval, curves, intervals


def write_card(card: Card, folder: Path) -> list[Path]:
    """Write ``card.json``, ``card.md`` and ``card.html``; returns their paths."""
    paths = [folder / name for name in (cards.JSON_FILE, cards.MARKDOWN_FILE, cards.PAGE_FILE)]
    write_json(paths[0], card.as_dict())
    write_atomic(paths[1], cards.markdown(card).encode())
    write_atomic(paths[2], document.render(card_page(card)).encode())
    return paths


def card_page(card: Card) -> Page:
    """Versions, a section for each table, probes, pictures, and what could not be made."""
    facts = {str(name): plain(value) for name, value in card.facts.items()}
    sections = [Section("Versions, model, sampling", facts=facts, fold="closed"), *map(_section, card.tables)]
    if card.plots:
        sections.append(Section("Probes", figures=tuple(map(curves, card.plots))))
    if card.pictures:
        sections.append(Section("Pictures", pictures={file: caption for caption, file in card.pictures.items()}))
    if card.absent:
        absent = tuple(f"{name}: {reason}" for name, reason in card.absent.items())
        sections.append(Section("Left out", warnings=absent))
    return Page(card.title, sections=tuple(sections))


def _section(table: Table) -> Section:
    notes = tuple(cell_notes(table))
    players = tuple(Player(f"{p.title} ({p.score:.3f})", p.clip_id, p.sounds) for p in table.players)
    # Numbers of stages cannot be ranked against each other, so their figures matter less.
    fold: Literal["open", "closed"] = "open" if table.unit == "system" else "closed"
    parts = (
        Section("The model", notes=tuple(table.verdicts)),
        Section("Controls", notes=tuple(table.checks)),
        Section("Listen", players=players),
        Section("Figures: 95 % intervals", figures=tuple(_figures(table)), fold=fold),
        Section(f"Notes ({len(notes)})", notes=notes, fold="open"),
    )
    filled = tuple(part for part in parts if part.notes or part.players or part.figures)
    return Section(table.name, notes=tuple(table.about), table=_table(table), sections=filled)


def _figures(table: Table) -> Iterator[Figure]:
    for column in table.columns:
        cells = [(row.label, row.values[column.key]) for row in table.rows]
        rows = [Interval(name, cell_text(it, column.digits), it.value, it.low, it.high) for name, it in cells]
        if figure := intervals(heading(column), rows):
            yield figure


def _table(table: Table) -> document.Table:
    """The table with clips and failures; each column's best value stands out where rows can be compared."""
    best = {}
    for column in table.columns:
        numbers = [value for row in table.rows if (value := row.values[column.key].value) is not None]
        if column.better and len(numbers) > 1 and table.unit == "system" and column.informative is not False:
            best[column.key] = min(numbers) if column.better == "lower" else max(numbers)
    rows = []
    for row in table.rows:
        cells = [Cell(str(row.clips)), Cell(str(row.failed), mark="bad" if row.failed else "")]
        for column in table.columns:
            it = row.values[column.key]
            text, _, interval = cell_text(it, column.digits).partition(" ")
            is_best = it.value is not None and it.value == best.get(column.key)
            cells.append(Cell(text, interval, it.note, "best" if is_best else ""))
        rows.append((row.label, tuple(cells)))
    columns = [document.Column("clips"), document.Column("failed")]
    columns += [document.Column(heading(column), definition(column)) for column in table.columns]
    return document.Table(table.unit, tuple(columns), tuple(rows))
