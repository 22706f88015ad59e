"""Stops training at a NaN or infinite loss or gradient.

Lightning continues after a NaN without a message. Here the loss and the gradient are checked before every optimizer
step; if either is not finite, the run stops there with the names of the clips, and nothing is saved.

With ``precision: 16-mixed`` the loss scaler causes infinite gradients now and then, skips those steps and lowers its
scale. That is not a fault; many such steps in a row are.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from hafm_lightning.tokens import TokenBatch

CLIPS_NAMED = 8
"""Most clips of a process that the message names."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite."""


class NonFiniteGuard(Callback):
    """Stops before a step that would ruin the weights; logs ``train/gradient_norm``. Added to every fit."""

    def __init__(self, skipped_steps: int = 50) -> None:
        """Set how many skipped steps are allowed.

        Args:
            skipped_steps: With ``16-mixed``, stop when the loss scaler has skipped this many steps in a row.
        """
        self.skipped_steps = skipped_steps
        self._skipped = 0
        self._clips: list[str] = []
        self._finite_loss: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the clips of the step."""
        self._clips += batch.clip_ids if isinstance(batch, TokenBatch) else [f"batch {batch_idx}"]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss; the result is used before the step, so that all processes stop together."""
        finite = torch.isfinite(loss.detach()).all()
        self._finite_loss = finite if self._finite_loss is None else self._finite_loss & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Raise NonFiniteError on every process if the loss or the gradient of one is not finite."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        pl_module.log("train/gradient_norm", norm)
        loss_is_finite = self._finite_loss if self._finite_loss is not None else torch.tensor(True, device=norm.device)
        faults = torch.stack([~loss_is_finite.to(norm.device), ~torch.isfinite(norm)]).float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(faults, torch.distributed.ReduceOp.MAX)
        loss_fault, gradient_fault = (bool(fault) for fault in faults.tolist())
        mine, self._clips, self._finite_loss = self._clips, [], None
        scales_loss = getattr(trainer.precision_plugin, "scaler", None) is not None
        if gradient_fault and not loss_fault and scales_loss:
            self._skipped += 1
            if self._skipped < self.skipped_steps:
                return
        elif not loss_fault and not gradient_fault:
            self._skipped = 0
            return
        guilty = mine if not loss_fault or not bool(loss_is_finite) else []
        raise NonFiniteError(self._message(trainer, pl_module, loss_fault, guilty))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite (an optimizer can overflow on finite gradients)."""
        for name, value in checkpoint["state_dict"].items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"step {trainer.global_step}: {name} is not finite; this checkpoint is not saved")

    def _message(self, trainer: Trainer, pl_module: LightningModule, loss_fault: bool, guilty: list[str]) -> str:
        """The message with the clips of all processes, each of which has to call this."""
        everyone = [guilty] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(everyone, guilty)
        clips = "; ".join(
            f"process {rank}: {', '.join(names[:CLIPS_NAMED])}{' ...' if len(names) > CLIPS_NAMED else ''}"
            for rank, names in enumerate(everyone)
            if names
        )
        if loss_fault:
            what = "the loss is not finite"
        else:
            gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            bad = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
            what = f"the gradient is not finite ({', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''})"
            what += f" {self._skipped} times in a row" if self._skipped else ""
        return (
            f"step {trainer.global_step}: {what}\nclips: {clips}\n"
            "the step was not taken and nothing was saved; continue from the last checkpoint with a lower "
            "learning rate,\ngradient clipping or another precision: --ckpt_path auto and one of "
            "--model.optimizer.learning_rate 3e-5, --trainer.gradient_clip_val 1.0, --trainer.precision bf16-mixed"
        )
