"""The card on a Weights & Biases dashboard: every table with its intervals, every probe, every player.

Without an API key the run is written offline beside the card.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from hafm_lightning.evaluation.card.card import UNINFORMATIVE, Card, Table, definition
from hafm_lightning.page.figures import Plot

PROBE_COLUMNS = ("curve", "x", "y", "low", "high")
MEANING_COLUMNS = ("column", "heading", "informative", "meaning")


def log_to_wandb(card: Card, folder: Path, project: str) -> str:
    """Log tables, probes and players of the card in ``folder``; returns one line with the address."""
    import wandb

    online = bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key) and os.environ.get("WANDB_MODE") != "offline"
    mode: Literal["online", "offline"] = "online" if online else "offline"
    run = wandb.init(project=project, dir=str(folder), job_type="evaluate", config=dict(card.facts), mode=mode)
    try:
        for table in card.tables:
            columns, rows = table_rows(table)
            run.log({f"evaluate/{table.name}": wandb.Table(columns=list(columns), data=rows)})
            meanings = wandb.Table(columns=list(MEANING_COLUMNS), data=meaning_rows(table))
            run.log({f"evaluate/{table.name}/columns": meanings})
            if table.verdicts or table.checks:
                run.summary[f"evaluate/{table.name}/verdict"] = " ".join([*table.verdicts, *table.checks])
            for player in table.players:
                title = f"{table.name}: {player.title} ({player.clip_id})"
                sounds = {name: wandb.Audio(str(folder / file), caption=title) for name, file in player.sounds.items()}
                run.log({f"evaluate/{table.name}/{player.title}/{name}": sound for name, sound in sounds.items()})
        for plot in card.plots:
            logged = wandb.Table(columns=list(PROBE_COLUMNS), data=plot_rows(plot))
            run.log({f"evaluate/probes/{plot.title.replace(': ', ', ')}": logged})
        where = run.url if online and run.url else f"offline: wandb sync {Path(run.dir).parent}"
    finally:
        run.finish()
    return f"Weights & Biases: {where}"


def table_rows(table: Table) -> tuple[list[str], list[list[str | int | float | None]]]:
    """Column names, and a list a system: every value between its bounds. Uninformative columns have it in the name."""
    marks = {column.key: f" {UNINFORMATIVE}" if column.informative is False else "" for column in table.columns}
    names = [f"{key}{bound}{mark}" for key, mark in marks.items() for bound in ("", "_low", "_high")]
    rows: list[list[str | int | float | None]] = []
    for row in table.rows:
        cells = [row.values[column.key] for column in table.columns]
        numbers = [number for cell in cells for number in (cell.value, cell.low, cell.high)]
        rows.append([row.label, row.clips, row.failed, *numbers])
    return [table.unit, "clips", "failed", *names], rows


def meaning_rows(table: Table) -> list[list[str]]:
    """A list a column, in the order of :data:`MEANING_COLUMNS`."""
    words = {True: "yes", False: "no", None: "not tested"}
    return [[it.key, it.label, words[it.informative], definition(it)] for it in table.columns]


def plot_rows(plot: Plot) -> list[list[str | float | None]]:
    """A list a point, in the order of :data:`PROBE_COLUMNS`; level lines have no x and no interval."""
    rows: list[list[str | float | None]] = [
        [curve.label, *point]
        for curve in plot.curves
        for point in zip(curve.x, curve.y, curve.low, curve.high, strict=True)
    ]
    return rows + [[name, None, level, None, None] for name, level in plot.baselines.items()]
