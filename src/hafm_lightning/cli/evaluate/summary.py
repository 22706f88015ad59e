"""What `evaluate` prints: of each table the main columns, aligned, and the verdicts; the files hold the rest."""

from __future__ import annotations

from collections.abc import Sequence

from hafm_lightning.evaluation.card.card import UNINFORMATIVE, Card, Column, Table, cell_text, heading

MOST_COLUMNS = 6
"""Columns of a table that are printed."""
MAIN_COLUMNS = (
    *("fad_", "chord_accuracy", "chroma_cosine", "onset_f1", "beat_f_measure", "beat_phase", "apa_", "key_score"),
    *("loss", "accuracy", "conditioning_gain", "other_song_gap", "other_vocal_gap"),
)
"""Beginnings of the keys of columns, the most important first."""
ABSENT = "–"


def summary(card: Card) -> str:
    """The card in a few lines a table."""
    lines = [card.title]
    for table in card.tables:
        lines += ["", f"{table.name}: {table.about[0]}" if table.about else table.name, *rows_of(table)]
        lines += [f"- {verdict}" for verdict in table.verdicts]
        useless = [column.label for column in table.columns if column.informative is False]
        if useless:
            lines.append(f"- uninformative on these clips, ignore: {', '.join(useless)}")
        failed = sum(row.failed for row in table.rows) if table.unit == "system" else 0
        if failed:
            lines.append(f"- {failed} failed clips count as silence; the card names the reasons")
    if card.absent:
        lines += ["", "left out:", *(f"- {name}: {reason}" for name, reason in card.absent.items())]
    return "\n".join(lines)


def rows_of(table: Table) -> list[str]:
    """The main columns; differences with their intervals."""
    columns = main_columns(table)
    whole = table.unit == "difference"
    rows = [[table.unit, *(heading(column).replace(f" {UNINFORMATIVE}", "") for column in columns)]]
    for row in table.rows:
        cells = [cell_text(row.values[column.key], column.digits) for column in columns]
        rows.append([row.label, *(cell if whole else cell.partition(" ")[0] for cell in cells)])
    return aligned(rows)


def main_columns(table: Table) -> list[Column]:
    """The columns to print, in the order of the card: informative ones that some row has."""
    filled = [
        column
        for column in table.columns
        if column.informative is not False and any(row.values[column.key].value is not None for row in table.rows)
    ]

    def rank(column: Column) -> int:
        places = [place for place, start in enumerate(MAIN_COLUMNS) if column.key.startswith(start)]
        return min(places, default=len(MAIN_COLUMNS))

    chosen = sorted(filled, key=rank)[:MOST_COLUMNS]
    return [column for column in filled if column in chosen]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column left, the others right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
