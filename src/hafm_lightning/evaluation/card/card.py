"""The evaluation card: tables of numbers with intervals, their protocol, plots and players; as JSON and as Markdown.

A cell is a :class:`Value` with its interval, or gives the reason why it is empty: no NaN is ever written, and a failed
clip is counted in the row and stays in its means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.intervals import Interval
from hafm_lightning.page.figures import Plot
from hafm_lightning.untrusted import checked, read_json

CARD_FORMAT = 2
"""Version of ``card.json``; cards of version 1 have no verdicts on their columns."""
UNINFORMATIVE = "(uninformative)"
"""Follows the heading of a column that cannot tell right from wrong on the card's clips."""
JSON_FILE, MARKDOWN_FILE, PAGE_FILE = "card.json", "card.md", "card.html"
ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Column:
    """What a column shows: ``key`` in the JSON and in W&B, heading, definition, and number of digits after the point.

    ``better`` is ``lower``, ``higher``, or empty where neither is. ``informative`` says whether the column's control
    passed on these clips (None: not tested), and ``judgement`` how; see
    :mod:`~hafm_lightning.evaluation.card.checks`.
    """

    key: str
    label: str
    better: str
    note: str
    digits: int = 3
    informative: bool | None = None
    judgement: str = ""


@dataclass(frozen=True)
class Value:
    """One cell: a number with its 95 % interval, each None where there is none, and why, or what to keep in mind."""

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

    @classmethod
    def of(cls, interval: Interval, note: str = "") -> Value:
        """A mean with its interval."""
        return cls(interval.mean, interval.low, interval.high, note)


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
        protocol: Settings, segments and problems, in full.
        unit: What a row is: ``system``, or ``stage`` or ``difference``, which cannot be ranked against each other.
        checks: What the controls compared, and the results; see :mod:`~hafm_lightning.evaluation.card.checks`.
        verdicts: Where each model stands between random pairing and the truth.
    """

    name: str
    about: list[str]
    columns: list[Column]
    rows: list[Row]
    players: list[Player] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    unit: str = "system"
    checks: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """Everything of one evaluation.

    Attributes:
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
    if not Path(path).exists():
        raise RequestError(f"no card {path}; run `evaluate` first")
    content = read_json(path, what="a card", advice="run `evaluate` again")
    version = content.pop("format", None) if isinstance(content, dict) else None
    if type(version) is int and version > CARD_FORMAT:
        raise RequestError(f"{path}: a card of a newer format; update hafm_lightning")
    if type(version) is not int or version < 1:
        raise RequestError(f"{path}: not a card (format {version!r:.40})")
    return checked(content, Card, f"{path}: a card", "run `evaluate` again")


def cell_text(value: Value, digits: int) -> str:
    """A cell as text: ``1.234 [1.100, 1.400]``; a dash where it is empty."""
    if value.value is None:
        return "–"
    text = f"{value.value:.{digits}f}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return text


def heading(column: Column) -> str:
    """A column's heading with the direction that is better, and a mark where the column is uninformative."""
    mark = UNINFORMATIVE if column.informative is False else ""
    return " ".join(filter(None, (column.label, ARROWS.get(column.better, ""), mark)))


def definition(column: Column) -> str:
    """What a column shows, and what its control found."""
    judgement = f"{column.judgement[:1].upper()}{column.judgement[1:]}." if column.judgement else ""
    return f"{column.note} {judgement}".strip()


def markdown(card: Card) -> str:
    """The card as Markdown: tables with intervals, definitions and empty cells' reasons below each."""
    lines = [f"# {card.title}", ""]
    lines += [f"- {name}: {plain(value)}" for name, value in card.facts.items()]
    for table in card.tables:
        lines += ["", f"## {table.name}", "", *(f"- {line}" for line in table.about), ""]
        lines += _markdown_rows(table)
        if table.verdicts:
            lines += ["", "The model:", "", *(f"- {verdict}" for verdict in table.verdicts)]
        lines += ["", *(f"- **{column.label}**: {definition(column)}" for column in table.columns)]
        lines += [f"- {note}" for note in cell_notes(table)]
        if table.checks:
            lines += ["", "Controls:", "", *(f"- {check}" for check in table.checks)]
    for plot in card.plots:
        lines += ["", f"## {plot.title}", "", f"| {plot.x_label} | curve | {plot.y_label} |", "|---|---|---|"]
        for curve in plot.curves:
            values = map(Value, curve.y, curve.low, curve.high)
            points = zip(curve.x, values, strict=True)
            lines += [f"| {x:g} | {curve.label} | {cell_text(value, 4)} |" for x, value in points]
        lines += [f"| any | {name} | {level:.4f} |" for name, level in plot.baselines.items()]
    if card.pictures:
        lines += ["", "## Pictures", "", *(f"![{caption}](<{file}>)" for caption, file in card.pictures.items())]
    if card.absent:
        lines += ["", "## Left out", "", *(f"- {name}: {reason}" for name, reason in card.absent.items())]
    return "\n".join(lines) + "\n"


def _markdown_rows(table: Table) -> list[str]:
    rows = [[table.unit, "clips", "failed", *map(heading, table.columns)]]
    for row in table.rows:
        cells = (cell_text(row.values[column.key], column.digits) for column in table.columns)
        rows.append([row.label, str(row.clips), str(row.failed), *cells])
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def cell_notes(table: Table) -> list[str]:
    """The notes of the cells, each once: its columns, its systems (unless it holds for all), and the text."""
    systems: dict[tuple[str, str], list[str]] = defaultdict(list)
    for column in table.columns:
        for row in table.rows:
            if note := row.values[column.key].note:
                systems[note, column.label].append(row.label)
    columns: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for (note, label), rows in systems.items():
        columns[note, tuple(rows)].append(label)
    notes = []
    for (note, of_rows), labels in columns.items():
        of = "" if len(of_rows) == len(table.rows) else f" of {'; '.join(of_rows)}"
        notes.append(f"{', '.join(labels)}{of}: {note}")
    failures = [(row.label, *failure) for row in table.rows for failure in row.failures.items()]
    return notes + [f"{label}: {count} failed: {reason}" for label, reason, count in failures]


def plain(value: Any) -> str:
    """A JSON value as text without brackets and quotes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)
