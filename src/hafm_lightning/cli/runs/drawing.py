"""Curves of several runs in one picture: a panel for loss and one for accuracy, a colour for each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hafm_lightning.cli.runs.curves import METRICS
from hafm_lightning.cli.runs.records import Record
from hafm_lightning.errors import RequestError
from hafm_lightning.page.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
"""Of validation, in turn, where there are more runs than colours."""


def overlay(records: Sequence[Record]) -> Figure:
    """Validation as bold lines with points, the running mean of training as thin ones; RequestError without a loss."""
    from matplotlib.figure import Figure

    logged = {name for record in records for name in record.series}
    if not {"train/loss", "val/loss"} & logged:
        raise RequestError("no run has logged a loss yet\nthe first comes after trainer.log_every_n_steps steps")
    metrics = [metric for metric in METRICS if {f"train/{metric}", f"val/{metric}"} & logged]
    figure = Figure(figsize=(8.5, 3.0 * len(metrics) + 0.4 * len(records)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        label, scale = METRICS[metric]
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
        for number, record in enumerate(records):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            if train := record.series.get(f"train/{metric}"):
                panel.plot(train.steps, scale * np.array(train.smoothed().values), color=colour, alpha=0.45, lw=0.9)
            if validation := record.series.get(f"val/{metric}"):
                values = scale * np.array(validation.values)
                panel.plot(validation.steps, values, style, marker="o", ms=3.5, color=colour)
            panel.plot([], [], style, marker="o", ms=3.5, color=colour, label=record.name)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].set_xlim(left=0)
    panels[0].set_title("validation: lines with points; training: thin lines", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", fontsize=8)
    return figure
