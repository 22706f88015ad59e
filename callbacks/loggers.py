"""Loggers: a CSV file for every run, Weights & Biases where the configuration names it.

``metrics.csv`` has a row for each logging call and a column for each metric; a continued run drops the rows that it
will log again. W&B is online when there is a key, else offline, with one line in the log. Its run id is kept in the run
folder, so that a continued run extends the same curves.
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
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from hafm_lightning.callbacks.checkpoints import BEST_NAME
from hafm_lightning.files import write_atomic
from hafm_lightning.modeling.token_scores import score_names
from hafm_lightning.tokens import COARSE_CODEBOOKS
from hafm_lightning.training.internals import set_wandb_run, wandb_run, wandb_settings

METRICS_FILE = "metrics.csv"
WANDB_ID_FILE = "wandb-run-id.txt"
WANDB_ID_VARIABLE = "WANDB_RUN_ID"
"""Set by W&B's sweep agents, which wait for the run of that id, and by people; it comes before the id in the file."""
FIRST_COLUMNS = ["step", "epoch", "seconds"]
"""Optimizer step, epoch, and seconds of training, those of earlier parts of a continued run included."""


class LastRow:
    """The row that was logged last: the row of a step that is saved comes before the save, and from Lightning again."""

    def __init__(self) -> None:
        self._last: tuple[int | None, dict[str, float]] | None = None

    def repeats(self, metrics: Mapping[str, Any], step: int | None) -> bool:
        """Whether the row is equal to the last one; it is the last one from here on."""
        row = (step, {name: float(value) for name, value in metrics.items()})
        last, self._last = self._last, row
        if last is None or last[0] != step or last[1].keys() != row[1].keys():
            return False
        return all(last[1][name] == value or value != value for name, value in row[1].items())  # NaN equals nothing


class CsvLog(CSVLogger):
    """``metrics.csv`` in the run folder. The command line interface adds it to every fit.

    Lightning's own file is deleted when a run continues, and lost when a kill comes while a column is added. Here a row
    is written when :meth:`log_metrics` returns, and a rewrite is atomic.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")
        self.path = Path(folder) / METRICS_FILE
        self._columns: list[str] = []
        self._rows = LastRow()
        self._seconds_before = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on."""
        self._start = time.monotonic()

    @property
    def experiment(self) -> CsvLog:
        """This logger itself; Lightning's writer would delete the file."""
        return self

    def save(self) -> None:
        """Do nothing: rows are written at once."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Do nothing: settings are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row of name -> value; optimizer steps count from 0. A row that was logged already is left out."""
        if self._rows.repeats(metrics, step):
            return
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
        """Start the file; in that of a continued run, keep only the rows that come before the new one."""
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
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values() and row.get("step")]


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
        log_model: bool = False,
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
            log_model: Whether the best checkpoint becomes an artifact of the W&B run when training ends.
        """
        self.chosen_mode, self._reason = chosen_mode(mode)
        self._id_file: Path | None = None
        self._outer_id = os.environ.get(WANDB_ID_VARIABLE, "")
        self._given: dict[str, Any] = {"name": name, "project": project, "entity": entity, "group": group, "tags": tags}
        self._given |= {"save_dir": save_dir, "id": self._outer_id or secrets.token_hex(4), "mode": self.chosen_mode}
        self.sends_model, self._folder = log_model, Path()
        self._rows = LastRow()
        super().__init__(**{**self._given, "save_dir": save_dir or "."})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row, unless it was logged already."""
        if not self._rows.repeats(metrics, step):
            super().log_metrics(metrics, step)

    def use_run_folder(self, folder: Path) -> None:
        """Keep files and the run's id in the run folder."""
        self._id_file, self._folder = folder / WANDB_ID_FILE, folder
        self._given["save_dir"] = self._given["save_dir"] or folder
        self._given["name"] = self._given["name"] or "/".join(folder.parts[-2:])
        if self._id_file.is_file() and not self._outer_id:
            self._given["id"] = self._id_file.read_text(encoding="utf-8").strip()
        super().__init__(**self._given)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End of the run: the best checkpoint becomes an artifact, if that is wanted."""
        super().finalize(status)
        best = self._folder / "checkpoints" / BEST_NAME
        if self.sends_model and status == "success" and wandb_run(self) is not None and best.is_file():
            import wandb

            artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model")
            artifact.add_file(str(best), policy="immutable")  # it is not copied: nothing writes to it any more
            self.experiment.log_artifact(artifact, aliases=["best", "latest"])

    @property
    def experiment(self) -> Any:
        """The W&B run; the first access begins it."""
        if wandb_run(self) is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._start()
        return super().experiment

    def _start(self) -> None:
        import wandb

        settings = wandb_settings(self)
        Path(settings["dir"]).mkdir(parents=True, exist_ok=True)
        settings.pop("anonymous", None)  # Lightning's; W&B warns of it
        silent = wandb.Settings(silent=True)  # offline, the line below replaces W&B's own
        try:
            run = wandb.init(**settings, settings=silent if self.chosen_mode == "offline" else None)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            self._reason = f"cannot be reached ({str(error).splitlines()[0]})"
            settings["mode"] = self.chosen_mode = "offline"
            run = wandb.init(**settings, settings=silent)
        set_wandb_run(self, run)
        if self.chosen_mode == "offline":
            folder = Path(run.settings.sync_dir)
            rank_zero_info(f"W&B: {self._reason}, logging offline; `wandb sync {folder}` sends it later")
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        for name in (*score_names(COARSE_CODEBOOKS), "conditioning_gain", "other_clip_gap"):
            summary = "min,last" if name.startswith("loss") else "max,last"
            for split in ("train", "val", "test"):
                run.define_metric(f"{split}/{name}", summary=summary, step_metric="trainer/global_step")
        for pattern in ("fad_*", "semantic_centroid_frechet", "loss*"):
            run.define_metric(f"music/{pattern}", summary="min,last", step_metric="trainer/global_step")
        run.define_metric("music/accuracy*", summary="max,last", step_metric="trainer/global_step")
        if self._id_file is not None:
            write_atomic(self._id_file, f"{settings['id']}\n".encode())


def chosen_mode(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """W&B's mode and the reason for it; ``auto`` is WANDB_MODE, else online with a key, else offline."""
    requested = os.environ.get("WANDB_MODE", "") if mode == "auto" else mode
    if requested in ("online", "offline", "disabled"):
        return requested, f"{'WANDB_MODE' if mode == 'auto' else 'mode'} is {requested}"  # type: ignore[return-value]
    if requested == "dryrun":
        return "offline", "WANDB_MODE is dryrun"
    if os.environ.get("WANDB_API_KEY"):
        return "online", "there is a key"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with suppress(OSError, netrc.NetrcParseError, RuntimeError):  # RuntimeError: a user without a home
        if netrc.netrc(Path(os.environ.get("NETRC", "~/.netrc")).expanduser()).authenticators(host):
            return "online", "there is a key"
    return "offline", "no key (`wandb login` stores one)"
