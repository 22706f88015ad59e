"""The evaluation card: tables of numbers with intervals, their protocol, plots and players; as JSON and as Markdown.

A cell is a :class:`Value` with its interval, or states why it is empty: no NaN is ever written, and a failed clip is
counted in the row and stays in its means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError
from hafm_lightning.page.figures import Curve as Curve
from hafm_lightning.page.figures import Plot as Plot

CARD_FORMAT = 1
"""Version of ``card.json``."""
JSON_FILE, MARKDOWN_FILE, PAGE_FILE = "card.json", "card.md", "card.html"


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Attributes:
        key: Name in the JSON and in W&B.
        label: Heading.
        better: ``lower``, ``higher``, or empty where neither is.
        note: Definition and protocol, one or two sentences.
        digits: Digits after the point.
    """

    key: str
    label: str
    better: str
    note: str
    digits: int = 3


@dataclass(frozen=True)
class Value:
    """One cell.

    Attributes:
        value: The number; None where there is none.
        low: Lower bound of the 95 % interval; None where there is no interval.
        high: Upper bound.
        note: Why it is empty, or what to keep in mind.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a cell cannot hold {number}; leave it empty with a note that gives the reason")
        if self.value is None and not self.note:
            raise ValueError("an empty cell needs a note with the reason")


@dataclass(frozen=True)
class Player:
    """A clip to listen to: ``title``, ``system``, ``clip_id``, its score, and file names beside the page."""

    title: str
    system: str
    clip_id: str
    score: float
    sounds: dict[str, str]


@dataclass(frozen=True)
class Row:
    """One system.

    Attributes:
        system: Key.
        label: For people.
        clips: Number of requested clips, all of which are in its means.
        failed: Number of these that failed and count as silence.
        failures: Reason -> number of clips.
        facts: Hashes, seed, sampling.
        values: Column key -> cell.
    """

    system: str
    label: str
    clips: int
    failed: int
    failures: dict[str, int]
    facts: dict[str, Any]
    values: dict[str, Value]


@dataclass(frozen=True)
class Table:
    """Systems by columns, for one protocol.

    Attributes:
        name: Protocol.
        about: Lines on songs, clips, reference and embeddings.
        columns: In order.
        rows: In order.
        players: Clips to listen to.
        protocol: Settings, segments and problems, in full.
        unit: What a row is: ``system``, or ``stage`` or ``difference``, which cannot be ranked against each other.
        checks: Results of the controls; see :mod:`~hafm_lightning.evaluation.card.checks`.
    """

    name: str
    about: list[str]
    columns: list[Column]
    rows: list[Row]
    players: list[Player] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    unit: str = "system"
    checks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """Everything of one evaluation.

    Attributes:
        title: Heading.
        facts: Versions, device, model, seed.
        tables: Protocols, then token tables (one row a stage).
        plots: Probes.
        absent: Requested rows and tables that could not be made: name -> reason.
        pictures: Caption -> image file, relative to the card.
    """

    title: str
    facts: dict[str, Any]
    tables: list[Table]
    plots: list[Plot] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; inverse: :func:`load_card`. A card without pictures has the same fields as older ones."""
        content = {"format": CARD_FORMAT, **asdict(self)}
        if not self.pictures:
            del content["pictures"]
        return content


def load_card(path: str | Path) -> Card:
    """Read a ``card.json``; RequestError where it is missing, damaged or newer."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("format") > CARD_FORMAT:
            raise RequestError(f"{path}: a card of a newer format; update hafm_lightning")
        tables = [_table_of(table) for table in content["tables"]]
        plots = [Plot(**plot | {"curves": [Curve(**curve) for curve in plot["curves"]]}) for plot in content["plots"]]
        return Card(**content | {"tables": tables, "plots": plots})
    except FileNotFoundError:
        raise RequestError(f"no card {path}; run `evaluate` first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, RequestError) else RequestError(f"{path}: not a card ({error})") from error


def _table_of(content: dict[str, Any]) -> Table:
    rows = [
        Row(**row | {"values": {key: Value(**value) for key, value in row["values"].items()}})
        for row in content["rows"]
    ]
    columns = [Column(**column) for column in content["columns"]]
    players = [Player(**player) for player in content["players"]]
    return Table(**content | {"columns": columns, "rows": rows, "players": players})


def cell_text(value: Value, digits: int) -> str:
    """A cell as text: ``1.234 [1.100, 1.400]``; a dash where it is empty."""
    if value.value is None:
        return "–"
    text = f"{value.value:.{digits}f}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return text


def heading(column: Column) -> str:
    """A column's heading with the direction that is better."""
    return f"{column.label} {'↓' if column.better == 'lower' else '↑' if column.better == 'higher' else ''}".strip()


def markdown(card: Card) -> str:
    """The card as Markdown: tables with intervals, definitions and empty cells' reasons below each."""
    lines = [f"# {card.title}", ""]
    lines += [f"- {name}: {plain(value)}" for name, value in card.facts.items()]
    for table in card.tables:
        lines += ["", f"## {table.name}", "", *(f"- {line}" for line in table.about), ""]
        lines += _markdown_rows(table)
        lines += ["", *(f"- **{column.label}**: {column.note}" for column in table.columns)]
        lines += [f"- {note}" for note in cell_notes(table)]
        if table.checks:
            lines += ["", "Controls:", "", *(f"- {check}" for check in table.checks)]
    for plot in card.plots:
        lines += ["", f"## {plot.title}", "", f"| {plot.x_label} | curve | {plot.y_label} |", "|---|---|---|"]
        for curve in plot.curves:
            lines += [
                f"| {x:g} | {curve.label} | {y:.4f} [{low:.4f}, {high:.4f}] |"
                for x, y, low, high in zip(curve.x, curve.y, curve.low, curve.high, strict=True)
            ]
        lines += [f"| any | {name} | {level:.4f} |" for name, level in plot.baselines.items()]
    if card.pictures:
        lines += ["", "## Pictures", "", *(f"![{caption}](<{file}>)" for caption, file in card.pictures.items())]
    if card.absent:
        lines += ["", "## Left out", "", *(f"- {name}: {reason}" for name, reason in card.absent.items())]
    return "\n".join(lines) + "\n"


def _markdown_rows(table: Table) -> list[str]:
    head = [table.unit, "clips", "failed", *map(heading, table.columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table.rows:
        cells = [row.label, str(row.clips), str(row.failed)]
        cells += [cell_text(row.values[column.key], column.digits) for column in table.columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cell_notes(table: Table) -> list[str]:
    """The notes of the cells, each once: its columns, its systems (unless it holds for all), and the text."""
    systems: dict[tuple[str, str], list[str]] = {}
    for column in table.columns:
        for row in table.rows:
            if row.values[column.key].note:
                systems.setdefault((row.values[column.key].note, column.label), []).append(row.label)
    columns: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (note, column_label), rows in systems.items():
        columns.setdefault((note, tuple(rows)), []).append(column_label)
    notes = []
    for (note, of_rows), labels in columns.items():
        of = "" if len(of_rows) == len(table.rows) else f" of {'; '.join(of_rows)}"
        notes.append(f"{', '.join(labels)}{of}: {note}")
    return notes + [
        f"{row.label}: {count} failed: {reason}" for row in table.rows for reason, count in row.failures.items()
    ]


def plain(value: Any) -> str:
    """A JSON value as text without brackets and quotes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)
