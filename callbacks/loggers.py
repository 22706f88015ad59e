"""Where metrics go: a CSV file always, Weights & Biases where it is wanted.

Choices:

* ``metrics.csv`` has a row each time something is logged, a column a metric, and survives a continued run: rows that
  the continued run will log again are dropped, the others stay.
* W&B goes online when there is a key, else offline with one line that says so. A run keeps its id in the run folder, so
  that a continued run goes on in the same curves.
"""

from __future__ import annotations

import csv
import io
import netrc
import os
import secrets
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from hafm_lightning.files import write_atomic
from hafm_lightning.modeling.token_scores import score_names
from hafm_lightning.tokens import COARSE_CODEBOOKS
from hafm_lightning.training.internals import set_wandb_identity, set_wandb_run, wandb_run, wandb_settings

METRICS_FILE = "metrics.csv"
WANDB_ID_FILE = "wandb-run-id.txt"
FIRST_COLUMNS = ["step", "epoch", "seconds"]
"""Optimizer step, epoch, and seconds of training, those of earlier parts of a continued run included."""


class CsvLog(CSVLogger):
    """``metrics.csv`` in the run folder. The command line interface adds it to every fit.

    Lightning's logger, but its file is deleted when a run continues, and lost when a kill comes while a column is
    added. Here a row is on the disk when :meth:`log_metrics` returns, and the file is never without its rows.
    """

    def __init__(self, folder: str) -> None:
        """Set the folder; it is made when the first metric comes.

        Args:
            folder: The run folder.
        """
        super().__init__(folder, name="", version="")
        self.path = Path(folder) / METRICS_FILE
        self._columns: list[str] = []
        self._seconds_before = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on (called where training begins)."""
        self._start = time.monotonic()

    @property
    def experiment(self) -> CsvLog:
        """This logger, which writes by itself; Lightning's writer would delete the file."""
        return self

    def save(self) -> None:
        """Nothing is left to write."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Settings are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row.

        Args:
            metrics: Name -> value.
            step: Optimizer step, counted from 0.
        """
        if not self._columns:
            self._open(int(step or 0), set(metrics))
        row: dict[str, Any] = {"step": step, **metrics}
        row["seconds"] = round(self._seconds_before + time.monotonic() - self._start, 3)
        unseen = [name for name in row if name not in self._columns]
        if unseen:
            self._columns += sorted(unseen)
            self._rewrite(read_rows(self.path))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _open(self, step: int, names: set[str]) -> None:
        """Start the file, or drop from it what the continued run logs again: all from the row that comes now."""
        rows = []
        for row in read_rows(self.path):
            at = int(float(row["step"]))
            if at > step or (at == step and any(row.get(name) for name in names - set(FIRST_COLUMNS))):
                break
            rows.append(row)
        self._columns = list(dict.fromkeys([*FIRST_COLUMNS, *(name for row in rows for name in row)]))
        self._seconds_before = max((float(row["seconds"] or 0) for row in rows), default=0.0)
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics file, without one that a crash cut short; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row and None not in row.values() and row.get("step")]


class WandbDashboard(WandbLogger):
    """Weights & Biases, online when it can be, offline when not."""

    def __init__(
        self,
        project: str = "hafm_lightning",
        name: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        save_dir: str | None = None,
    ) -> None:
        """Describe the run; nothing is contacted yet.

        Args:
            project: W&B project.
            name: Shown name of the run; by default that of the run folder.
            mode: ``auto`` is online with a key (``wandb login`` or WANDB_API_KEY), else offline.
            entity: W&B user or team.
            group: Runs to show together, such as the three stages of one model.
            tags: Labels.
            save_dir: Where W&B writes; by default the run folder.
        """
        self.chosen_mode, self._reason = chosen_mode(mode)
        self._given_dir, self._given_name = save_dir, name
        self._id_file: Path | None = None
        super().__init__(
            name=name,
            save_dir=save_dir or ".",
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            mode=self.chosen_mode,
        )

    def use_run_folder(self, folder: Path) -> None:
        """Keep files and the run's id in the run folder (called by the command line interface)."""
        self._id_file = folder / WANDB_ID_FILE
        set_wandb_identity(
            self,
            folder=folder if self._given_dir is None else None,
            name=self._given_name or "/".join(folder.parts[-2:]),
            run_id=self._id_file.read_text(encoding="utf-8").strip() if self._id_file.is_file() else None,
        )

    @property
    def experiment(self) -> Any:
        """The W&B run; the first access starts it."""
        if wandb_run(self) is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._start()
        return super().experiment

    def _start(self) -> None:
        import wandb

        settings = wandb_settings(self)
        Path(settings["dir"]).mkdir(parents=True, exist_ok=True)
        if settings.get("id") is None:
            set_wandb_identity(self, run_id=secrets.token_hex(4))
        settings.pop("anonymous", None)  # Lightning's; W&B warns of it
        try:
            run = self._init()
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            self._reason = f"cannot be reached ({str(error).splitlines()[0]})"
            settings["mode"] = self.chosen_mode = "offline"
            run = self._init()
        set_wandb_run(self, run)
        if self.chosen_mode == "offline":
            folder = Path(run.settings.sync_dir)
            rank_zero_info(f"W&B: {self._reason}, logging offline; `wandb sync {folder}` sends it later")
        define_metrics(run)
        if self._id_file is not None:
            write_atomic(self._id_file, f"{settings['id']}\n".encode())

    def _init(self) -> Any:
        """The W&B run; offline, one line of our own says all."""
        import wandb

        return wandb.init(**wandb_settings(self), settings=wandb.Settings(silent=self.chosen_mode == "offline"))


def define_metrics(run: Any) -> None:
    """Tell W&B which metric is the step, and which value of each metric stands for a run."""
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    scores = [*score_names(COARSE_CODEBOOKS), "conditioning_gain", "other_clip_gap"]
    for split in ("train", "val", "test"):
        for name in scores:
            best = "min" if name.startswith("loss") else "max"
            run.define_metric(f"{split}/{name}", summary=f"{best},last", step_metric="trainer/global_step")


def chosen_mode(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """W&B's mode and the reason for it; ``auto`` is WANDB_MODE, else online with a key, else offline."""
    requested = os.environ.get("WANDB_MODE", "") if mode == "auto" else mode
    if requested in ("online", "offline", "disabled"):
        return requested, f"{'WANDB_MODE' if mode == 'auto' else 'mode'} is {requested}"  # type: ignore[return-value]
    if requested == "dryrun":
        return "offline", "WANDB_MODE is dryrun"
    return ("online", "there is a key") if has_key() else ("offline", "no key (`wandb login` stores one)")


def has_key() -> bool:
    """Whether this user is logged in, by the environment or netrc; asks no server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
