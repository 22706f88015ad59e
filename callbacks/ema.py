"""Exponential moving average of the weights, for validation and generation.

While training, a second copy of the parameters follows the first: ``average += (1 - decay) (weights - average)``, with
the decay rising from 0.1 as ``(1 + n) / (10 + n)`` so that the random start is soon forgotten. Validation runs on the
average, and ``state_dict`` of a checkpoint is the average; the weights in training are saved beside it, so that a
continued run is exact.

Lightning's ``WeightAveraging`` (2.6.6) does not continue exactly: a checkpoint saved in the middle of a validation
holds the two copies exchanged, and one saved at the end of training holds the average twice.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from hafm_lightning.checkpoint_format import ADVICE, check_weights
from hafm_lightning.errors import RequestError
from hafm_lightning.training.internals import move_all

TRAINING_WEIGHTS = "training_weights"
"""Checkpoint entry with the weights in training, where ``state_dict`` holds the average."""


class EMA(Callback):
    """Keeps an exponential moving average of the weights."""

    def __init__(self, decay: float = 0.999, every_steps: int = 1) -> None:
        """Set how slowly the average follows.

        Args:
            decay: Share of the old average that is kept at an update; 0.999 averages over about 1000 updates.
            every_steps: Optimizer steps between two updates.
        """
        if not 0 < decay < 1 or every_steps < 1:
            raise RequestError(f"EMA needs 0 < decay < 1 and every_steps >= 1, got {decay} and {every_steps}")
        self.decay, self.every_steps = decay, every_steps
        self._average: dict[str, Tensor] = {}
        self._updates = self._updated_step = 0
        self._swapped = False

    def state_dict(self) -> dict[str, Any]:
        """Number of updates."""
        return {"updates": self._updates, "updated_step": self._updated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._updates, self._updated_step = state_dict["updates"], state_dict["updated_step"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that cut the weights into pieces."""
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise RequestError(
                f"EMA does not work with {type(trainer.strategy).__name__}, which spreads the weights over processes\n"
                "use strategy ddp, or leave EMA out of trainer.callbacks"
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the average, and put the weights in training back into the model."""
        if trainer.state.fn != TrainerFn.FITTING or TRAINING_WEIGHTS not in checkpoint:
            return
        training = checkpoint[TRAINING_WEIGHTS]
        if not isinstance(training, dict):
            raise RequestError(f"the checkpoint's entry {TRAINING_WEIGHTS!r} is damaged; {ADVICE}")
        check_weights(training, dict(pl_module.named_parameters()), f"the checkpoint ({TRAINING_WEIGHTS})")
        self._average = {name: checkpoint["state_dict"][name].clone() for name in training}
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                parameter.copy_(training[name])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as ``state_dict``, and the weights in training beside it."""
        if not self._average:
            return
        in_model = {name: parameter.detach() for name, parameter in pl_module.named_parameters()}
        training, average = (self._average, in_model) if self._swapped else (in_model, self._average)
        checkpoint[TRAINING_WEIGHTS] = dict(training)
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **average}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights, or move a loaded average to the device."""
        for name, parameter in pl_module.named_parameters():
            start = self._average.get(name, parameter.detach())
            self._average[name] = start.to(parameter.device, parameter.dtype, copy=True)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Follow the weights."""
        step = trainer.global_step
        if step == self._updated_step or step % self.every_steps:
            return
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        weights = [parameter.detach() for parameter in pl_module.parameters()]
        move_all(list(self._average.values()), weights, 1 - decay)
        self._updates, self._updated_step = self._updates + 1, step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if trainer.state.fn == TrainerFn.FITTING and self._average and not self._swapped:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights in training back into the model."""
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights in training back into the model."""
        self.on_validation_end(trainer, pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            before = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(before)
        self._swapped = not self._swapped
