"""``curves RUN...``: loss and accuracy of runs, training and validation, in two panels, as PNG and SVG.

Like figures 4 to 6 of the paper, drawn from a run's ``metrics.csv``. A RUN is a run folder, the folder above it (its
newest run is drawn), or a metrics file. Training values are drawn faintly as logged and boldly as a running mean; level
lines show the paper's values where the run logged them.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hafm_lightning.cli.fit.runs import newest_run
from hafm_lightning.cli.parser import PROGRAM, Parser
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
    """A metric over optimizer steps.

    Attributes:
        steps: Optimizer steps done when the value was logged.
        values: The values.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def times(self, scale: float) -> Series:
        """The series in another unit."""
        return Series(self.steps, [value * scale for value in self.values])

    def smoothed(self) -> Series:
        """A centred running mean; few points stay as they are."""
        reach = len(self.values) // (2 * SMOOTHING_POINTS)
        if not reach:
            return self
        means = []
        for place in range(len(self.values)):
            around = self.values[max(0, place - reach) : place + reach + 1]
            means.append(sum(around) / len(around))
        return Series(self.steps, means)


def metrics_file(run: Path) -> Path:
    """The metrics of a run folder, of the newest run in a folder, or the file itself.

    Raises:
        RequestError: There are none.
    """
    if run.is_file():
        return run
    newest = newest_run(run) if run.is_dir() else None
    for folder in (run, newest):
        if folder is not None and (folder / METRICS_FILE).is_file():
            return folder / METRICS_FILE
    raise RequestError(f"{run}: no {METRICS_FILE} here\nname a run folder, such as logs/coarse/run-000, or its parent")


def read_series(path: Path) -> dict[str, Series]:
    """Metric -> series, from a metrics file; values that are not finite are left out.

    Raises:
        RequestError: The file is not a metrics file.
    """
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
    """The figure of one run: a panel for each metric that was logged.

    Raises:
        RequestError: The run logged no loss.
    """
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
        train, validation = (series.get(f"{part}/{metric}", Series()).times(scale) for part in ("train", "val"))
        if train.steps:
            panel.plot(train.steps, train.values, color=TRAINING, alpha=0.25, linewidth=0.8)
            panel.plot(train.steps, train.smoothed().values, color=TRAINING, label="training")
        if validation.steps:
            panel.plot(validation.steps, validation.values, "--o", color=VALIDATION, label="validation")
        if paper := series.get(f"val/{metric}_paper"):
            panel.axhline(paper.times(scale).values[-1], color=PAPER, linestyle=":", label="the paper")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].set_xlim(left=0)
    return figure


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(prog=f"{PROGRAM} curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    result.add_argument("--out", type=Path, help="folder for the figures; by default each run's own")
    return result


def figure_names(paths: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the figures of runs go, without the ending: in the runs' folders, or in ``out`` under the runs' names.

    A name is the last two folders of a run's path, and as many before them as tell the runs apart.
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


def main(argv: Sequence[str]) -> int:
    """Draw each run, and print the files."""
    from matplotlib import rc_context

    options = parser().parse_args(argv)
    paths = [metrics_file(run) for run in options.runs]
    figures = [draw(read_series(path), "/".join(path.resolve().parent.parts[-2:])) for path in paths]
    for figure, name in zip(figures, figure_names(paths, options.out), strict=True):
        for ending in FORMATS:
            target = name.with_name(f"{name.name}.{ending}")
            picture = io.BytesIO()
            with rc_context({"svg.hashsalt": name.name}):  # random ids and dates would make equal figures differ
                figure.savefig(picture, dpi=150, format=ending, metadata={"Date": None} if ending == "svg" else {})
            try:
                write_atomic(target, picture.getvalue())
            except OSError as error:
                raise RequestError(f"{target}: cannot be written ({error.strerror}); choose another --out") from error
            print(target)
    return 0
