"""AdamW as in the paper (arXiv 2604.09054, section 3.5), with a learning rate that depends on the step alone.

The fused kernel, which reads and writes weights and moments once a step, is used on every device that has one. Under
``16-mixed`` a fused optimizer may unscale the gradients within its kernel; clipping would then see scaled gradients, so
that Lightning refuses it. Here the loss scaler unscales first, as it does for every other optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hafm_lightning.errors import RequestError
from hafm_lightning.training.internals import unscale_before_step

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Types of devices for which torch has a fused AdamW."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the paper's.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        warmup_steps: Optimizer steps over which the rate rises linearly from 0; 0 starts at the peak.
        schedule: ``constant`` after warm-up, or ``cosine`` down to ``final_fraction``.
        total_steps: Optimizer steps at which ``cosine`` ends; required for it.
        final_fraction: Share of the peak rate at which ``cosine`` ends.
        fused: Whether a step is one kernel, equal up to rounding; by default wherever the device has it.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    total_steps: int | None = None
    final_fraction: float = 0.1
    fused: bool | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if self.schedule == "cosine" and (self.total_steps is None or self.total_steps <= self.warmup_steps):
            raise ValueError("schedule 'cosine' needs total_steps, above warmup_steps: set it to trainer.max_steps")

    def factor(self, step: int) -> float:
        """Share of the peak rate at optimizer step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.total_steps is None:
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * done))


def adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Any:
    """What ``configure_optimizers`` returns; RequestError if ``fused`` is true on a device without a fused step."""
    parameters = list(parameters)
    odd = {parameter.device.type for parameter in parameters}.difference(FUSED_DEVICES)
    if config.fused and odd:
        raise RequestError(
            f"model.optimizer.fused is true, but there is no fused AdamW on {', '.join(sorted(odd))}\n"
            "leave it out, or use --model.optimizer.fused false"
        )
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=not odd if config.fused is None else config.fused,
    )
    unscale_before_step(optimizer)  # so that the gradients are clipped unscaled
    if config.schedule == "constant" and not config.warmup_steps:
        return optimizer
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, config.factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
