"""Draw loss and accuracy of runs, training and validation, as PNG and SVG.

The figures are like figures 4 to 6 of the paper. The faint line shows each logged training value, the bold line
their running mean, and a dotted line the paper's value where the run logged it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hafm_lightning.cli.fit.runs import newest_run
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic
from hafm_lightning.page.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.csv"
METRICS = {"loss": ("cross-entropy (nats)", 1.0), "accuracy": ("token accuracy (%)", 100.0)}
"""Metric -> label and scale of its panel; two axes in one panel would suggest a relation where they cross."""
TRAINING, VALIDATION, PAPER = COLOURS[:3]
FORMATS = ("png", "svg")
SMOOTHING_POINTS = 40
"""The running mean spans the number of logged points divided by this."""


@dataclass
class Series:
    """Values of a metric, and the optimizer steps done when each was logged."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def smoothed(self) -> Series:
        """A centred running mean, over fewer points at both ends; few points stay as they are."""
        window = np.ones(2 * (len(self.values) // (2 * SMOOTHING_POINTS)) + 1)
        counts = np.convolve(np.ones(len(self.values)), window, mode="same")
        return Series(self.steps, (np.convolve(self.values, window, mode="same") / counts).tolist())


def metrics_file(run: Path) -> Path:
    """The metrics file of a run folder, of the newest run in a folder, or ``run`` itself; RequestError if missing."""
    if run.is_file():
        return run
    newest = newest_run(run) if run.is_dir() else None
    for folder in (run, newest):
        if folder is not None and (folder / METRICS_FILE).is_file():
            return folder / METRICS_FILE
    raise RequestError(f"{run}: no {METRICS_FILE} here\nname a run folder, such as logs/coarse/run-000, or its parent")


def read_series(path: Path) -> dict[str, Series]:
    """Metric -> its finite values, from a metrics file; RequestError if it is another file."""
    series: dict[str, Series] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{path}: not a metrics file ({error})\nname a run folder, such as logs/coarse/run-000"
        ) from error
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or []):
            raise RequestError(f"{path}: not a metrics file (no column 'step')")
        for number, row in enumerate(reader, 2):
            try:
                step = int(float(row["step"]))
                logged = {name: float(value) for name, value in row.items() if name and value and name != "step"}
            except (TypeError, ValueError) as error:
                raise RequestError(f"{path}, line {number}: {error}") from error
            for name, value in logged.items():
                if math.isfinite(value):
                    one = series.setdefault(name, Series())
                    one.steps.append(step + 1)
                    one.values.append(value)
    return series


def draw(series: dict[str, Series], title: str) -> Figure:
    """The figure of one run: a panel for each metric that was logged; RequestError if there is no loss."""
    from matplotlib.figure import Figure

    if not {"train/loss", "val/loss"} & set(series):
        raise RequestError(f"{title}: no loss was logged yet\nthe first comes after trainer.log_every_n_steps steps")
    metrics = [metric for metric in METRICS if {f"train/{metric}", f"val/{metric}"} & set(series)]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    panels[0].set_title(title, fontsize=10)
    for panel, metric in zip(panels, metrics, strict=True):
        label, scale = METRICS[metric]
        panel.set_ylabel(label)
        if train := series.get(f"train/{metric}"):
            mean = scale * np.array(train.smoothed().values)
            panel.plot(train.steps, scale * np.array(train.values), color=TRAINING, alpha=0.25, linewidth=0.8)
            panel.plot(train.steps, mean, color=TRAINING, label="training")
        if validation := series.get(f"val/{metric}"):
            values = scale * np.array(validation.values)
            panel.plot(validation.steps, values, "--o", color=VALIDATION, label="validation")
        if paper := series.get(f"val/{metric}_paper"):
            panel.axhline(scale * paper.values[-1], color=PAPER, linestyle=":", label="the paper")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].set_xlim(left=0)
    return figure


def figure_names(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """Paths of the figures without the ending: in the runs' folders, or in ``out``.

    A name in ``out`` joins the last two folders of a run's path, or more where two runs share these.
    """
    if out is None:
        return [path.parent / "curves" for path in paths]
    folders = [path.resolve().parent.parts for path in paths]
    names: list[str] = []
    for depth in range(2, max(map(len, folders), default=2) + 1):
        names = ["-".join(parts[-depth:]).replace("/", "") for parts in folders]
        if len(set(names)) == len(set(folders)):
            break
    return [out / name for name in names]


def save_figure(figure: Figure, name: Path) -> list[Path]:
    """Write a figure as ``name.png`` and ``name.svg``, the same bytes each time; returns the files.

    Raises:
        RequestError: A file cannot be written.
    """
    from matplotlib import rc_context

    targets = [name.with_name(f"{name.name}.{ending}") for ending in FORMATS]
    for target, ending in zip(targets, FORMATS, strict=True):
        picture = io.BytesIO()
        with rc_context({"svg.hashsalt": name.name}):  # random ids and dates would make equal figures differ
            figure.savefig(picture, dpi=150, format=ending, metadata={"Date": None} if ending == "svg" else {})
        try:
            write_atomic(target, picture.getvalue())
        except OSError as error:
            raise RequestError(f"{target}: cannot be written ({error.strerror}); choose another --out") from error
    return targets


def main(argv: Sequence[str]) -> int:
    """Draw each run, and print the files."""
    parser = Parser("curves", __doc__)
    run_help = "a run folder, the folder above it (draws its newest run), or a metrics.csv"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=run_help)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the figures (default: each run's own)")
    options = parser.parse_args(argv)
    paths = [metrics_file(run) for run in options.runs]
    figures = [draw(read_series(path), "/".join(path.resolve().parent.parts[-2:])) for path in paths]
    for figure, name in zip(figures, figure_names(paths, options.out), strict=True):
        for target in save_figure(figure, name):
            print(target)
    return 0
