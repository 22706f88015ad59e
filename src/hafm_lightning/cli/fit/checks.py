"""Requests to Lightning that would end in nothing, in silence, or in a traceback, refused in a few lines."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from hafm_lightning.errors import RequestError

LARGEST_SEED = 2**32 - 1
TUNERS: dict[type[pl.Callback], str] = {
    LearningRateFinder: "it sets a rate that neither the configuration nor the checkpoints know\n"
    "compare a few short runs: --model.optimizer.learning_rate 3e-4 --trainer.max_steps 200, and `curves`",
    BatchSizeFinder: "it changes the batches of a run that has begun\n"
    "`describe --data.global_batch_size 8` estimates the memory of a batch; a trial: --trainer.fast_dev_run true",
}
"""Callbacks of Lightning's tuner, which change settings behind the configuration, and what to do instead."""
ENDS = ("max_steps", "max_epochs", "limit_train_batches")
INTERVALS = ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch")
BATCHES = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}


def check_seed(seed: Any) -> None:
    """RequestError for a seed that the generators do not take."""
    if not isinstance(seed, bool) and isinstance(seed, int) and not 0 <= seed <= LARGEST_SEED:
        raise RequestError(f"seed_everything must lie in 0 .. {LARGEST_SEED}, got {seed}\ntrue draws one")


def check_callbacks(trainer: pl.Trainer) -> None:
    """RequestError for a callback that works against the configuration."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, advice in TUNERS.items():
            if isinstance(callback, kind):
                raise RequestError(f"{kind.__name__} cannot be used here: {advice}")


def check_limits(command: str, trainer: pl.Trainer) -> None:
    """RequestError if the limits of the Trainer leave nothing to do."""
    names = ENDS if command == "fit" else (BATCHES[command],)
    for name in names:
        if getattr(trainer, name) == 0:
            work = "trained" if command == "fit" else "computed"
            raise RequestError(
                f"trainer.{name} is 0: nothing would be {work}\n"
                f"set it to the wanted number, or leave --trainer.{name} out"
            )


def check_intervals(trainer_settings: Any) -> None:
    """RequestError for intervals of 0 or less, by which Lightning divides; ``trainer_settings`` as configured."""
    for name in INTERVALS:
        value = trainer_settings[name]
        if isinstance(value, int | float) and not value > 0:
            raise RequestError(
                f"trainer.{name} must be above 0, got {value}\nto validate never: --trainer.limit_val_batches 0"
                if "check" in name
                else f"trainer.{name} must be 1 or more, got {value}\n1 takes an optimizer step after every batch"
            )


def comes_from_lightning(error: BaseException) -> bool:
    """Whether Lightning itself has raised an error: about its settings, when training begins."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lightning.")


def steps_left_note(trainer: pl.Trainer, step: int) -> str:
    """A line for a run that is complete already; empty for every other."""
    if not 0 <= trainer.max_steps <= step:
        return ""
    return (
        f"the checkpoint has {step} steps and trainer.max_steps is {trainer.max_steps}: nothing is left to train; "
        "a larger --trainer.max_steps goes on"
    )
