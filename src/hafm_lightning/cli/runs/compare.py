"""Compare training runs: one table, the settings that differ, and their curves in one picture.

The scores are those at each run's best val/loss, read from the metrics.csv that every run leaves; the better one of a
row has a star. A dash stands where a run has logged no such value. The table is printed, and written with the curves as
compare.txt, compare.html, curves.png and curves.svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hafm_lightning.cli.evaluate.summary import aligned
from hafm_lightning.cli.parser import Parser, check_writable
from hafm_lightning.cli.runs.curves import save_figure
from hafm_lightning.cli.runs.drawing import overlay
from hafm_lightning.cli.runs.records import SCORES, Record, differing_settings, music_scores, read_records
from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic
from hafm_lightning.page.document import Cell, Page, Section, Table, render

DASH = "–"
LONGEST = 28
"""Characters of a setting's value in the table."""
Row = tuple[str, list[str], str]
"""Name, a text for each run, and which is better: ``lower``, ``higher``, or empty."""


def main(argv: Sequence[str]) -> int:
    """Print the table, and write all files."""
    parser = Parser("compare", str(__doc__))
    run_help = "a run folder, the folder above it (takes its newest run), or a metrics.csv"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=run_help)
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), metavar="DIR", help="folder of the files (default: comparison)"
    )
    options = parser.parse_args(argv)
    check_writable(options.out)
    records = read_records(options.runs)
    scores, settings = score_rows(records), setting_rows(records)
    figure = overlay(records)
    text = as_text(records, scores, settings)
    print(text)
    try:
        write_atomic(options.out / "compare.txt", f"{text}\n".encode())
        pictures = save_figure(figure, options.out / "curves")
        write_atomic(options.out / "compare.html", page(records, scores, settings).encode())
    except OSError as error:
        raise RequestError(f"--out {options.out}: cannot be written ({error.strerror}); choose another") from error
    print("\n".join(["", *map(str, (options.out / "compare.txt", options.out / "compare.html", *pictures))]))
    return 0


def score_rows(records: Sequence[Record]) -> list[Row]:
    """Best step, scores, size and time; scores that no run has are left out."""
    rows: list[Row] = [("best val/loss at step", [whole(record.best_step) for record in records], "")]
    for name, better in {**SCORES, **music_scores(records)}.items():
        values = [record.score(name) for record in records]
        if any(value is not None for value in values):
            rows.append((name, marked(values, better), better))
    hours = [DASH if record.hours is None else f"{record.hours:.3g}" for record in records]
    rows.append(("parameters", [whole(record.parameters) for record in records], ""))
    rows.append(("steps", [whole(record.steps) for record in records], ""))
    rows.append(("hours", hours, ""))
    return rows


def setting_rows(records: Sequence[Record]) -> list[Row]:
    """The settings that differ."""
    differing = differing_settings(records)
    return [(key, [value_text(value) for value in values], "") for key, values in differing.items()]


def marked(values: Sequence[float | None], better: str) -> list[str]:
    """Numbers with four digits; the best of several has a star."""
    known = [value for value in values if value is not None]
    best = min(known) if better == "lower" else max(known)
    star = "*" if len(set(known)) > 1 else ""
    return [DASH if value is None else f"{value:.4g}{star if value == best else ''}" for value in values]


def whole(value: int | None) -> str:
    """A whole number with thin groups of thousands."""
    return DASH if value is None else f"{value:,}"


def value_text(value: Any) -> str:
    """A setting's value, not too long."""
    text = DASH if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def as_text(records: Sequence[Record], scores: Sequence[Row], settings: Sequence[Row]) -> str:
    """The table with a column for each run."""
    head = ["", *(record.name for record in records)]
    rows = [head, *([name, *cells] for name, cells, _ in scores)]
    if not settings:
        return "\n".join([*aligned(rows), "", "no settings differ" if records[0].settings else "settings: unknown"])
    table = aligned([*rows, ["settings that differ", *("" for _ in records)], *([k, *v] for k, v, _ in settings)])
    return "\n".join(line.rstrip() for line in table)


def page(records: Sequence[Record], scores: Sequence[Row], settings: Sequence[Row]) -> str:
    """The same as HTML, with the curves."""

    def table(corner: str, rows: Sequence[Row]) -> Table:
        cells = [
            (name, *(Cell(text.rstrip("*"), mark="best" if text.endswith("*") else "") for text in texts))
            for name, texts, _ in rows
        ]
        return Table.of([corner, *(record.name for record in records)], cells)

    where = {record.name: str(record.folder) for record in records}
    sections = [
        Section("Scores at the best val/loss", table=table("score", scores)),
        Section("Curves", pictures={"curves.svg": "Loss and accuracy of all runs by optimizer step"}),
    ]
    if settings:
        sections.insert(1, Section("Settings that differ", table=table("setting", settings)))
    sections.append(Section("Folders of the runs", facts=where, fold="closed"))
    return render(Page("Runs compared", sections=tuple(sections)))
