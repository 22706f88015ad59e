"""Weights of the batches of an optimizer step, and the precisions and clippings with which a stage can be trained.

Choices:

* A step descends the mean over its clips: ``sum_i n_i L_i / sum_i n_i`` for batches of ``n_i`` clips with mean loss
  ``L_i``; ``train/loss`` shows the same. Lightning divides every loss by ``accumulate_grad_batches``, so that the last
  step of an epoch is too small (half, with 1 batch of 2), and a small last batch weighs as much as a full one.
* Batches are counted as they come. Full groups of equal batches stay as Lightning makes them, bit for bit.
* The gradient is scaled after the last backward pass, before the guard, the logged norm, and clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import FSDPPrecision
from torch import Tensor, nn

from hafm_lightning.errors import RequestError
from hafm_lightning.training.internals import ends_epoch, finishes_step, scale_all

OTHER_LAYERS = "it replaces layers by its own, whose state this project's checkpoints cannot hold"
REFUSED_PRECISIONS = {
    # a small stage, 60 steps at a rate of 1e-3: loss 67 with clipping by the norm (float32: 5.0), NaN unfused
    "16-true": "AdamW cannot train float16 weights: its second moment underflows, and the steps grow without bound",
    "transformer-engine": OTHER_LAYERS,
    "transformer-engine-float16": OTHER_LAYERS,
}
"""Lightning's precisions in which no stage is trained -> reason."""


def check_precision(precision: str | int | None) -> None:
    """RequestError if a stage cannot be trained in ``precision``, in the Trainer's notation."""
    reason = REFUSED_PRECISIONS.get(str(precision))
    if reason is not None:
        raise RequestError(
            f"trainer.precision {precision}: {reason}\n"
            "train with --trainer.precision bf16-mixed (or 16-mixed, bf16-true, 32-true, 64-true)"
        )


def check_training(trainer: pl.Trainer) -> None:
    """RequestError if the Trainer's precision or clipping would fail at the first step or not do what it says."""
    check_precision(trainer.precision)
    value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    if value is None and algorithm is not None:
        raise RequestError(
            f"trainer.gradient_clip_algorithm is {algorithm.value!r}, but nothing is clipped without a bound\n"
            "add --trainer.gradient_clip_val 1.0, or leave out the algorithm"
        )
    if value is None:
        return
    if not 0 <= value < math.inf:
        raise RequestError(
            f"trainer.gradient_clip_val must be above 0, or 0 for no clipping, got {value}\n1.0 is usual for the norm"
        )
    if value and algorithm != "value" and isinstance(trainer.precision_plugin, FSDPPrecision):
        raise RequestError(
            "trainer.gradient_clip_algorithm: Lightning cannot clip by the norm with the FSDP strategy\n"
            "use --trainer.gradient_clip_algorithm value, or --trainer.strategy ddp"
        )


class StepWeights:
    """Weighs the batches of an optimizer step so that its gradient is that of the mean over its clips.

    Several processes exchange sizes only at an epoch's last batch; before it, all batches of all processes must have
    equally many clips, as those of :class:`~hafm_lightning.data_modules.TokenShards` have.
    """

    def __init__(self) -> None:
        self._clips: list[int] = []
        self._factor = 1.0

    def weigh(self, loss: Tensor, clips: int, trainer: pl.Trainer) -> Tensor:
        """The loss of a batch for Lightning, from the mean over its ``clips``."""
        if trainer.strategy.handles_gradient_accumulation:  # DeepSpeed: groups reach over the ends of epochs
            return loss
        self._clips.append(clips)
        ends_step = finishes_step(trainer)
        world, first, total = trainer.world_size, self._clips[0], sum(self._clips)
        if world > 1:
            if not ends_epoch(trainer):
                if ends_step:
                    self._clips = []
                return loss
            sizes = torch.tensor([first, total], device=loss.device)
            first, total = map(int, trainer.strategy.reduce(sizes, reduce_op="sum").tolist())
        if ends_step:
            self._factor = trainer.accumulate_grad_batches * first / total
            self._clips = []
        weight = clips * world / first
        return loss if weight == 1 else loss * weight

    def finish(self, parameters: Iterable[nn.Parameter]) -> None:
        """Scale the gradient after the last backward pass of a step."""
        factor, self._factor = self._factor, 1.0
        gradients = [p.grad for p in parameters if p.grad is not None] if factor != 1 else []
        if gradients:
            scale_all(gradients, factor)
