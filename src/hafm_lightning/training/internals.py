"""All private names of Lightning and torch that this project uses.

Each has one function, whose test in ``tests/training/test_internals.py`` fails by name when an upgrade removes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from typing import Self


class NotesMoves(nn.Module):
    """A module with a hook for moves of its tensors to another device or type (``to``, ``cuda``, ``half`` ...)."""

    def on_moved(self) -> None:
        """Called after every move."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.on_moved()
        return self


def finishes_step(trainer: Trainer) -> bool:
    """Whether the present training batch is the last one of its optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def ends_epoch(trainer: Trainer) -> bool:
    """Whether the present training batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def ends_training(trainer: Trainer) -> bool:
    """Whether the present training batch is the last one of its epoch or of the run."""
    return trainer.fit_loop.epoch_loop._is_training_done


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after the present training batch."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None, "only while training"
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def writes_row(trainer: Trainer) -> bool:
    """Whether Lightning hands the metrics of the present optimizer step to the loggers."""
    return trainer._logger_connector.should_update_logs


def loop_state_after_batch(trainer: Trainer) -> dict[str, Any]:
    """State of the fit loop, for ``on_train_batch_end``, from which a run continues with the next batch."""
    state: dict[str, Any] = copy.deepcopy(trainer.fit_loop.state_dict())
    if ends_epoch(trainer):
        for counter in state["epoch_progress"].values():
            counter["processed"] = counter["completed"] = counter["ready"]
    return state


def write_row(trainer: Trainer) -> None:
    """Hand the metrics of the present optimizer step to the loggers now; Lightning does so after the callbacks."""
    trainer._logger_connector.update_train_step_metrics()


def note_sigterm(trainer: Trainer) -> None:
    """Let the run end as after SIGTERM, whichever signal stops it on whichever process."""
    trainer._signal_connector.received_sigterm = True


def unscale_before_step(optimizer: Optimizer) -> None:
    """Let the loss scaler unscale the gradients of a fused optimizer before its step, as of every other one."""
    cast(Any, optimizer)._step_supports_amp_scaling = False


def scale_all(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply all tensors by ``factor``, in place, in few kernels."""
    torch._foreach_mul_(list(tensors), factor)


def move_all(tensors: Sequence[Tensor], towards: Sequence[Tensor], share: float) -> None:
    """Move each tensor by a share of its distance to another one, in place, in few kernels."""
    torch._foreach_lerp_(list(tensors), list(towards), share)


def wandb_settings(logger: WandbLogger) -> dict[str, Any]:
    """Arguments of ``wandb.init``; they can be changed until the W&B run begins."""
    return logger._wandb_init


def wandb_run(logger: WandbLogger) -> Any:
    """The logger's W&B run; None before it begins."""
    return logger._experiment


def set_wandb_run(logger: WandbLogger, run: Any) -> None:
    """Let the logger write to a W&B run."""
    logger._experiment = run
