"""Continue a run as if it had never stopped: the same batches, the same random numbers, the same validations.

Together with a data module that stores its position (``TokenShards``), a run that is killed anywhere and continued from
its last checkpoint ends with the weights of the uninterrupted run, bit for bit.

Choices:

* Before every training batch all generators are seeded with a hash of (seed, number of the batch, process). There is no
  generator state to save, and nothing that runs between two steps (validation, sampling of audio) can shift it.
* Every checkpoint holds the counters of Lightning's loops, and the position in the data, as they were when the last
  optimizer step ended, whichever hook saves it. After the last batch of an epoch the epoch counts as done.
* With accumulated gradients a validation, and with it a save, can fall between two batches of a step. No checkpoint
  holds the gradients of half a step: the continued run repeats the batches of that step, with the same numbers.
* A step that is divided otherwise (``global_batch_size`` on another number of devices) keeps its clips; Lightning's
  counters of batches are changed to the new batches. The random numbers of a batch are others then.
* A validation that was due but not finished is marked, and the continued run begins with it; Lightning would skip it.
"""

from __future__ import annotations

import copy
import math
import os
import random
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from hafm_lightning.callbacks.ema import EMA, TRAINING_WEIGHTS
from hafm_lightning.errors import RequestError
from hafm_lightning.training.internals import ends_training, finishes_step, loop_state_after_batch, validation_follows
from hafm_lightning.training.protocols import DividesBatches


def seed_step(seed: int, batch: int, rank: int) -> None:
    """Seed torch (all devices), numpy and Python from a hash of the arguments."""
    words = np.random.SeedSequence([seed % 2**64, batch, rank]).generate_state(4, np.uint32)
    torch.manual_seed((int(words[0]) << 32) | int(words[1]))
    np.random.seed(int(words[2]))  # noqa: NPY002  (libraries draw from the global generator)
    random.seed(int(words[3]))


def count_batches_again(loops: dict[str, Any], for_each: Fraction) -> None:
    """Change Lightning's counters of training batches, in place, to batches of which ``for_each`` replace one.

    Mid-epoch counts are whole steps, and stay whole. A short last step of an epoch rounds up, so that the epoch counts
    as done.
    """
    progress = loops["epoch_loop.batch_progress"]
    for counter in (progress["total"], progress["current"]):
        counter.update({name: math.ceil(count * for_each) for name, count in counter.items()})


@dataclass(frozen=True)
class Position:
    """Where a run stands after an optimizer step."""

    batches: int  # done since the beginning
    epoch: int  # of the last batch
    loops: dict[str, Any]  # state of Lightning's fit loop
    data: dict[str, Any]  # the data module's entry in a checkpoint; empty without one


class ExactResume(Callback):
    """Makes a continued run equal to the uninterrupted one. The command line interface adds it to every fit."""

    def __init__(self) -> None:
        self.seed = self._batches = self._epoch = 0
        self.keeps_seed = True  # of the checkpoint, also where the configuration has another by now
        self._validation_due = self._validation_missed = False
        self._position: Position | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the seed of ``seed_everything``."""
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and data.state_dict():  # Lightning looks for positions in loaders alone
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    def state_dict(self) -> dict[str, Any]:
        """Seed, number of batches done, and whether a validation is due."""
        due = self._validation_due or self._validation_missed
        at = self._position
        batches, epoch = (self._batches, self._epoch) if at is None else (at.batches, at.epoch)
        return {"seed": self.seed, "batches": batches, "epoch": epoch, "validation_due": due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the seed of the checkpoint, unless another one was asked for (``keeps_seed``)."""
        if state_dict["seed"] != self.seed and self.keeps_seed:
            rank_zero_info(f"continuing with seed {state_dict['seed']} of the checkpoint, not {self.seed}")
            self.seed = state_dict["seed"]
        self._batches, self._epoch = state_dict["batches"], state_dict["epoch"]
        self._validation_missed = state_dict["validation_due"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the counters as they were after the last optimizer step."""
        if self._position is not None:
            checkpoint["loops"]["fit_loop"] = copy.deepcopy(self._position.loops)
            checkpoint |= self._position.data
        validation = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        for counter in (validation["total"], validation["current"]):
            counter.update(dict.fromkeys(counter, 0))  # a count of validations is not part of the run
        validation["is_last_batch"] = True  # else Lightning counts an epoch that ended here once more

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse averaged weights where no EMA would bring back those in training; note the position."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        averages = any(isinstance(callback, EMA) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if TRAINING_WEIGHTS in checkpoint and not averages:
            raise RequestError(
                "the checkpoint comes from a run with averaged weights (EMA), which this configuration does not have\n"
                "add hafm_lightning.callbacks.EMA to trainer.callbacks to continue it"
            )
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved is not None:
            key = type(trainer.datamodule).__qualname__  # type: ignore[attr-defined]
            data = {key: checkpoint[key]} if key in checkpoint else {}
            loops = copy.deepcopy(checkpoint["loops"]["fit_loop"])
            self._position = Position(saved["batches"], saved["epoch"], loops, data)
        source = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, DividesBatches) and source.batches_for_each != 1:  # Lightning reads the loops after this
            count_batches_again(checkpoint["loops"]["fit_loop"], source.batches_for_each)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a validation that the stopped run did not finish."""
        self._run_missed_validation(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same for a run whose training was complete, for which Lightning does not call ``on_train_start``."""
        if not trainer.interrupted:
            self._run_missed_validation(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        if trainer.accumulate_grad_batches == 1:
            self._position = None
        seed_step(self.seed, self._batches, trainer.global_rank)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note where the run stands, before anything that follows the step moves the counters."""
        self._batches += 1
        self._epoch = trainer.current_epoch
        if not finishes_step(trainer):
            return
        self._validation_due = validation_follows(trainer)
        ends = self._validation_due or ends_training(trainer) or trainer.should_stop
        if ends or trainer.accumulate_grad_batches > 1:
            data = trainer.datamodule  # type: ignore[attr-defined]
            entry = {type(data).__qualname__: data.state_dict()} if data is not None else {}
            self._position = Position(self._batches, self._epoch, loop_state_after_batch(trainer), entry)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation is done; checkpoints saved from here on do not repeat it."""
        if not trainer.sanity_checking:
            self._validation_due = self._validation_missed = False

    def _run_missed_validation(self, trainer: Trainer) -> None:
        if not self._validation_missed:
            return
        validation = trainer.fit_loop.epoch_loop.val_loop
        validation.restarting = False
        epoch: Any = trainer.fit_loop.epoch_progress.current
        now = (epoch.processed, epoch.completed)
        epoch.processed = epoch.completed = self._epoch  # so that it is logged under the epoch to which it belongs
        trainer.validating = True
        validation.run()
        trainer.training = True
        epoch.processed, epoch.completed = now
        self._validation_missed = False
