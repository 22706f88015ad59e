"""What one optimizer step is taken over, and which of Lightning's precisions and clippings it can be taken with.

Choices:

* A step descends the mean over its clips: ``sum_i n_i L_i / sum_i n_i`` for batches of ``n_i`` clips with mean loss
  ``L_i``, which is also what ``train/loss`` shows. Lightning divides every loss by ``accumulate_grad_batches``; where
  an epoch ends within a group of accumulated batches, that makes the last step too small (half, with 1 batch of 2), and
  a small last batch (``drop_last: false``) weighs as much as a whole one.
* The batches are counted as they come, not as they were planned, so that ``limit_train_batches``,
  ``overfit_batches`` and loaders without a length need no case of their own. Whole groups of equal batches stay as
  Lightning makes them, bit for bit.
* The gradient gets its scale after the last backward pass and before anything looks at it: the guard, the logged
  norm, and clipping see the gradient of the mean.
* Combinations that would train wrongly without a word are refused before the first step.
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

REFUSED_PRECISIONS = {
    "16-true": "AdamW cannot train float16 weights: its second moment underflows, and the steps grow without bound",
    "transformer-engine": "it replaces layers by its own, whose state this project's checkpoints cannot hold",
    "transformer-engine-float16": "it replaces layers by its own, whose state this project's checkpoints cannot hold",
}
"""Lightning's precisions in which no stage is trained, and why.

``16-true`` was measured on a small stage: after 60 steps at a rate of 1e-3 the loss is 67 with clipping by the norm
(float32: 5.0), and NaN with AdamW unfused.
"""


def check_precision(precision: str | int | None) -> None:
    """Refuse a precision in which a stage cannot be trained.

    Args:
        precision: As Lightning's Trainer takes or shows it.

    Raises:
        RequestError: It is one of :data:`REFUSED_PRECISIONS`.
    """
    reason = REFUSED_PRECISIONS.get(str(precision))
    if reason is not None:
        raise RequestError(
            f"trainer.precision {precision}: {reason}\n"
            "train with --trainer.precision bf16-mixed (or 16-mixed, bf16-true, 32-true, 64-true)"
        )


def check_training(trainer: pl.Trainer) -> None:
    """Refuse precisions and gradient clippings that would fail at the first step or have another effect than intended.

    Raises:
        RequestError: The Trainer has such a setting.
    """
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

    Between several processes, each of which takes the mean of the gradients of all, sizes are only exchanged at an
    epoch's last batch; before it, all batches of all processes have to hold equally many clips, as those of
    :class:`~hafm_lightning.data_modules.TokenShards` do.
    """

    def __init__(self) -> None:
        self._clips: list[int] = []
        self._factor = 1.0

    def weigh(self, loss: Tensor, clips: int, trainer: pl.Trainer) -> Tensor:
        """The loss to hand to Lightning for this batch.

        Args:
            loss: Mean over the batch's clips, a scalar.
            clips: Number of these clips.
            trainer: Its loops tell where the batch stands in its epoch and its group.
        """
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
        """After a backward pass: bring the gradient of a finished step to its scale."""
        factor, self._factor = self._factor, 1.0
        gradients = [p.grad for p in parameters if p.grad is not None] if factor != 1 else []
        if gradients:
            scale_all(gradients, factor)
