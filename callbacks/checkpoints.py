"""Checkpoints that are complete or absent, saved at steps, at the best validation, and when a signal stops the run.

A run's ``checkpoints/`` holds the newest few ``step-00001000.ckpt`` and ``best.ckpt``; each continues the run exactly
(:mod:`.exact_resume`) and describes its stage (``load_stage``).

Choices:

* A file is written under a temporary name in the same folder, flushed to the disk and renamed. Lightning's own writer
  goes through TMPDIR, and on a full disk leaves a part of a file under the final name.
* Files are read as data only; a URL or a pickle with code is refused. Each file carries a digest of its bytes.
* SIGTERM, Ctrl-C and SIGHUP set a flag, which all processes read together between two optimizer steps; they save, and
  leave with exit code 143, 130 or 129. A second Ctrl-C stops at once.
* The loggers get the metrics of a step before it is saved: a run that continues does not log them again.
* Nothing is saved when an exception ends the run: what could be saved then may be the cause of the exception.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hafm_lightning.checkpoint_format import read_checkpoint
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file, remove_unfinished
from hafm_lightning.sealing import seal
from hafm_lightning.training.internals import finishes_step, note_sigterm, write_row, writes_row
from hafm_lightning.training.signals import StopSignals

BEST_NAME = "best.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint completely or not at all, and reads data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; after an OSError (a full disk) the file is as it was."""
        try:
            with atomic_file(Path(path)) as draft:
                with draft.open("wb") as file:
                    torch.save(checkpoint, file)
                seal(draft)
        except (OSError, RuntimeError) as error:
            # after the OSError of a full disk, torch.save raises a RuntimeError about a position in the file
            # and so it does after Ctrl-C
            reason = error if isinstance(error, OSError) else error.__context__
            if isinstance(reason, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            if isinstance(reason, OSError):
                raise OSError(reason.errno, reason.strerror, str(path)) from error
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint as data; RequestError for a missing or damaged file, a URL, or code."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def requeue_slurm_job() -> None:
    """Queue this SLURM job again, as it was submitted."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        rank_zero_info(f"could not queue job {job} again: {error}")
        return
    rank_zero_info(f"queued job {job} again" if not done.returncode else f"scontrol: {done.stderr.strip()}")


class Checkpoints(Checkpoint):
    """Saves the run, and stops it after a signal."""

    def __init__(
        self,
        every_steps: int | None = 1000,
        every_minutes: float | None = None,
        keep: int = 2,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Settings of ``checkpoints`` in the configuration.

        Args:
            every_steps: Optimizer steps between two saves.
            every_minutes: Minutes between two saves, in addition.
            keep: Number of newest checkpoints to keep, beside the best one.
            monitor: Metric whose best value ``best.ckpt`` keeps; null writes no ``best.ckpt``.
            mode: Whether the best value is the lowest or the highest.
        """
        super().__init__()
        for name, value in (("every_steps", every_steps), ("every_minutes", every_minutes), ("keep", keep)):
            if value is not None and not 0 < value < math.inf:
                raise RequestError(f"checkpoints.{name} must be above 0, got {value}")
        self.every_steps, self.every_minutes, self.keep = every_steps, every_minutes, keep
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.folder: Path | None = None
        self._signals = StopSignals()
        self._saved_step = -1
        self._saved_time = time.monotonic()
        self._common_validation_batches = 0

    @property
    def best_model_path(self) -> str:
        """The best checkpoint (the name by which Lightning asks for it), or an empty string."""
        best = self.folder / BEST_NAME if self.folder is not None else Path()
        return str(best) if best.is_file() else ""

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best_score": self.best_score, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the best value of the checkpoint, if it is of the same metric."""
        if state_dict.get("monitor") == self.monitor:
            self.best_score = state_dict["best_score"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder, and remove unfinished files of an interrupted save from it."""
        if stage != TrainerFn.FITTING:
            return
        self.folder = Path(trainer.strategy.broadcast(str(Path(trainer.default_root_dir) / "checkpoints")))
        if trainer.is_global_zero:
            remove_unfinished(self.folder)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch signals before Lightning's handlers act on one."""
        self._signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch signals; the step from which the run continues is saved already."""
        self._signals.install()
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """After an optimizer step: save when it is time, stop when a signal came."""
        if not finishes_step(trainer):
            return  # gradients of half a step are in no checkpoint
        minutes = (time.monotonic() - self._saved_time) / 60
        stop, overdue = self._agree(trainer, self.every_minutes is not None and minutes >= self.every_minutes)
        if stop:
            write_row(trainer)  # Lightning would write the row of this step after the callbacks
            self._save_and_stop(trainer)
        if overdue or (self.every_steps is not None and trainer.global_step % self.every_steps == 0):
            if writes_row(trainer):
                write_row(trainer)  # the loggers take no row twice
            self._save_step(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation batches that all processes have in common."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            batches = torch.tensor(float(sum(trainer.num_val_batches)), device=pl_module.device)
            self._common_validation_batches = int(trainer.strategy.reduce(batches, reduce_op="min"))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Stop in the middle of a validation, which may last longer than the grace period."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if batch_idx < self._common_validation_batches and self._agree(trainer)[0]:
            self._save_and_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or self.monitor is None or self.monitor not in trainer.callback_metrics:
            return
        if trainer.global_step == 0:
            return  # between the first accumulated batches: there is no step to continue from yet
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))  # one decision for all
        if not math.isfinite(score):
            rank_zero_info(f"{self.monitor} is {score} after step {trainer.global_step}: no candidate for {BEST_NAME}")
            return
        sign = 1 if self.mode == "min" else -1
        if self.best_score is None or sign * score < sign * self.best_score:
            self.best_score = score
            self._save(trainer, BEST_NAME)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of the run."""
        self._signals.restore()
        self._save_step(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Install the former signal handlers again; save nothing."""
        self._signals.restore()

    def _agree(self, trainer: Trainer, overdue: bool = False) -> list[bool]:
        """Whether to stop and whether to save: what any process has to do, so that all do the same at the same step."""
        flags = [self._signals.received is not None or trainer.received_sigterm, overdue]
        if trainer.world_size == 1:
            return flags
        flagged = torch.tensor(flags, dtype=torch.float32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flagged, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in flagged.tolist()]

    def _save(self, trainer: Trainer, name: str) -> None:
        if self.folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.folder / name, weights_only=False)

    def _save_step(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step:
            return
        self._save(trainer, f"step-{step:08d}.ckpt")
        self._saved_step, self._saved_time = step, time.monotonic()
        if trainer.is_global_zero and self.folder is not None:
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()

    def _save_and_stop(self, trainer: Trainer) -> None:
        self._save_step(trainer)
        rank_zero_info(
            f"stopped by a signal after step {trainer.global_step}; the run is saved, continue it with --ckpt_path auto"
        )
        if trainer.is_global_zero and self._signals.asks_to_requeue:
            requeue_slurm_job()
        trainer.strategy.barrier("saved before stopping")
        note_sigterm(trainer)
        raise SIGTERMException(self._signals.exit_code)
