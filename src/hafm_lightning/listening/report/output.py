"""A report as ``report.json``, ``report.md``, ``report.html`` and on a Weights & Biases dashboard.

The three forms show the same tables; :func:`sections_of` makes them once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafm_lightning.files import write_atomic, write_json
from hafm_lightning.listening.report.report import CriterionTables, HeadToHead, Report, SystemWins, Voter
from hafm_lightning.listening.report.verdicts import TIE
from hafm_lightning.page.document import Page, Section, Table, render
from hafm_lightning.page.figures import Figure, Interval, intervals

JSON_FILE, MARKDOWN_FILE, PAGE_FILE = "report.json", "report.md", "report.html"
EMPTY = "–"


@dataclass(frozen=True)
class Grid:
    """A table as plain text: title, one sentence, headings, rows."""

    title: str
    about: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the three files; returns their paths."""
    paths = [folder / name for name in (JSON_FILE, MARKDOWN_FILE, PAGE_FILE)]
    write_json(paths[0], report.as_dict())
    write_atomic(paths[1], markdown(report).encode())
    write_atomic(paths[2], render(page(report)).encode())
    return paths


def grids_of(report: Report) -> list[Grid]:
    """Every table, in the order of the page."""
    grids = []
    for tables in report.criteria:
        grids += [_wins(tables), _pairs(tables)]
    systems = [row.system for row in report.criteria[0].wins]
    clips = tuple(
        (clip, *(str(counts.get(system, 0)) for system in (*systems, TIE))) for clip, counts in report.clips.items()
    )
    head = ("clip", *systems, "ties")
    grids.append(Grid("Clips", "Trials that each system won, by the overall preference.", head, clips))
    grids.append(_voters(report.voters))
    return grids


def markdown(report: Report) -> str:
    """The report as Markdown; the gate stands first."""
    lines = [f"# {_plain(report.title)}", "", report.gate.sentence, ""]
    lines += [f"- {name}: {value}" for name, value in _facts(report)]
    for grid in grids_of(report):
        lines += ["", f"## {grid.title}", "", grid.about, ""]
        lines.append(_row(grid.head))
        lines.append("|" + "---|" * len(grid.head))
        lines += [_row(row) for row in grid.rows]
    return "\n".join(lines) + "\n"


def page(report: Report) -> Page:
    """The report as a page with a plot of every criterion."""
    sections = [Section("Gate", paragraphs=(report.gate.sentence,), facts=dict(_facts(report)))]
    figures = {f"Preferences: {tables.criterion}": tuple(_figures(tables)) for tables in report.criteria}
    for grid in grids_of(report):
        table = Table.of(grid.head, grid.rows, words=True)
        sections.append(Section(grid.title, (grid.about,), table=table, figures=figures.get(grid.title, ())))
    return Page(report.title, sections=tuple(sections))


def log_to_wandb(report: Report, folder: Path, project: str) -> str:
    """Log every table; returns one line with the address. Without an API key the run is written offline."""
    import os

    import wandb

    online = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key) and os.environ.get("WANDB_MODE") != "offline"
    mode: Any = "online" if online else "offline"
    run = wandb.init(project=project, dir=str(folder), job_type="listen", config=dict(_facts(report)), mode=mode)
    try:
        for grid in grids_of(report):
            rows = [list(row) for row in grid.rows]
            run.log({f"listen/{grid.title}": wandb.Table(columns=list(grid.head), data=rows)})
        main = report.criteria[-1]
        run.summary["listen/gate_passed"] = report.gate.passed
        run.summary.update({f"listen/wins/{row.system}": row.wins for row in main.wins})
        where = run.url if online and run.url else f"offline: wandb sync {Path(run.dir).parent}"
    finally:
        run.finish()
    return f"Weights & Biases: {where}"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    yield "study", report.study_id
    for name, value in report.facts.items():
        yield name, f"{value:g}" if isinstance(value, float) else str(value)
    first = report.first_played
    if first.n:
        yield (
            "first of the two preferred",
            f"{_share(first.share)} of {first.n} decided trials (p = {first.p:.2g}); one half is expected",
        )


def _wins(tables: CriterionTables) -> Grid:
    about = "Trials that each system won. Strength: Bradley-Terry with its 95 % interval over clips and listeners; all "
    about += "strengths sum to 1. Confidence: the sum over won trials, and its share of all."
    if tables.alpha is not None:
        about += f" Agreement of the voters: Krippendorff's alpha {tables.alpha:.3f} (1 full agreement, 0 chance)."
    head = ("system", "trials", "won", "of its trials", "of all trials", "ties", "lost", "confidence", "strength")
    rows = tuple(_wins_row(row) for row in tables.wins)
    return Grid(f"Wins: {tables.criterion}", about, head, rows)


def _wins_row(row: SystemWins) -> tuple[str, ...]:
    confidence = EMPTY if row.confidence is None else f"{row.confidence:g} ({_share(row.confidence_share)})"
    strength = EMPTY if row.strength is None else f"{row.strength:.3f}"
    if row.strength is not None and row.strength_low is not None and row.strength_high is not None:
        strength += f" [{row.strength_low:.3f}, {row.strength_high:.3f}]"
    won = row.wins / row.trials if row.trials else None
    counts = (str(row.trials), str(row.wins), _share(won), _share(row.share_of_all), str(row.ties), str(row.losses))
    return (row.system, *counts, confidence, strength)


def _pairs(tables: CriterionTables) -> Grid:
    about = (
        "Share: won by the first of all decided trials, with Wilson's 95 % interval and the exact two-sided binomial "
    )
    about += "p. Clustered: the 95 % interval over clips and listeners, where trials have several votes."
    head = ("pair", "won by the first", "ties", "share", "p", "clustered", "verdict")
    rows = tuple(_pair_row(pair) for pair in tables.pairs)
    return Grid(f"Preferences: {tables.criterion}", about, head, rows)


def _pair_row(pair: HeadToHead) -> tuple[str, ...]:
    share = pair.share
    text = EMPTY if share.share is None else f"{_share(share.share)} [{_share(share.low)}, {_share(share.high)}]"
    clustered = EMPTY if pair.low is None else f"[{_share(pair.low)}, {_share(pair.high)}]"
    counts = (f"{share.wins}/{share.n}", str(pair.ties), text, f"{share.p:.3g}")
    return (f"{pair.first} – {pair.second}", *counts, clustered, pair.verdict)


def _figures(tables: CriterionTables) -> Iterator[Figure]:
    rows = []
    for pair in tables.pairs:
        share, (low, high) = pair.share.share, pair.bounds
        text = f"{_share(share)} [{_share(low)}, {_share(high)}]"
        rows.append(Interval(f"{pair.first} against {pair.second}", text, share, low, high))
    if figure := intervals(f"Share of decided trials won by the first system ({tables.criterion})", rows):
        yield figure
    strengths = []
    for row in tables.wins:
        text = _wins_row(row)[-1]
        strengths.append(Interval(row.system, text, row.strength, row.strength_low, row.strength_high))
    if figure := intervals(f"Bradley-Terry strength ({tables.criterion})", strengths):
        yield figure


def _voters(voters: Sequence[Voter]) -> Grid:
    about = (
        "Silence: trials with a vocal alone on one side, failed if that side was chosen or called a tie. Equal sides: "
    )
    about += "trials with the ground truth on both sides, where a tie is expected."
    head = ("voter", "pairs", "silence failed", "equal sides tied", "failures", "in the tables")
    rows = tuple(
        (
            voter.voter,
            str(voter.pairs),
            f"{voter.silence_failed}/{voter.silence_trials}",
            f"{voter.same_tied}/{voter.same_trials}",
            "; ".join(f"{count} × {reason}" for reason, count in voter.failures.items()) or "0",
            "no" if voter.excluded else "yes",
        )
        for voter in voters
    )
    return Grid("Voters", about, head, rows)


def _share(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:.1f} %"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that stays text in Markdown: a name that a listener typed brings neither HTML nor a link or image."""
    return " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
