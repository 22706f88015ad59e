"""One progress bar for a whole run: optimizer steps, time left, and the latest losses.

Lightning's bars count the batches of an epoch; on small shards an epoch takes a second. This bar counts towards
``max_steps`` (or ``max_epochs``), in the project's style: a bar on a terminal, a line now and then in a log, nothing
with HAFM_QUIET. During training a validation is a note on the bar; outside, it has a bar of its own.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from hafm_lightning.progress import ProgressBar as Bar
from hafm_lightning.progress import progress

EVERY_STEPS = 10
"""Optimizer steps between two readings of the losses: reading waits for the device."""


class StepProgress(ProgressBar):
    """Shows the progress of a run."""

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        self._bar: Bar | None = None
        self._enabled = True
        self._step = 0
        self._losses: dict[str, float] = {}

    def disable(self) -> None:
        """Show nothing; called on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def _start(self, description: str, total: float, unit: str = "batches") -> None:
        self._close()
        if self._enabled:
            self._bar = self._open.enter_context(progress(description, total if math.isfinite(total) else None, unit))

    def _close(self, *_: Any, **__: Any) -> None:
        self._bar = None
        self._open.close()

    on_train_end = on_test_end = on_predict_end = on_exception = _close

    def _advance(self, steps: float = 1, note: str = "") -> None:
        if self._bar is not None:
            self._bar.advance(steps, note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar over the remaining steps."""
        self._step = trainer.global_step
        begins = f" from step {self._step}" if self._step else ""
        self._start(f"{type(pl_module).__name__}{begins}", planned_steps(trainer) - self._step, "steps")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count a step."""
        if self._bar is None or trainer.global_step == self._step:
            return
        if trainer.global_step % EVERY_STEPS == 0:
            self._read(trainer, "train/loss", "loss")
        self._advance(trainer.global_step - self._step, self._note())
        self._step = trainer.global_step

    def _read(self, trainer: Trainer, metric: str, name: str) -> None:
        if metric in trainer.callback_metrics:
            self._losses[name] = float(trainer.callback_metrics[metric])

    def _note(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self._losses.items())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar over the validation batches."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._start("Validating", sum(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar over the test batches."""
        self._start("Testing", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar over the batches to predict."""
        self._start("Predicting", sum(trainer.num_predict_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Count a validation batch."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._advance(0, f"validating {batch_idx + 1}/{sum(trainer.num_val_batches)}")
        else:
            self._advance()

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        """Count a batch."""
        self._advance()

    on_predict_batch_end = on_test_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new validation loss."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()
        elif not trainer.sanity_checking:
            self._read(trainer, "val/loss", "validation")
            self._advance(0, self._note())


def planned_steps(trainer: Trainer) -> float:
    """Optimizer steps at which the run ends: by ``max_steps`` or ``max_epochs``, whichever comes first."""
    limits = [float(trainer.max_steps)] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        batches = trainer.num_training_batches
        limits.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
    return min(limits, default=math.inf)
