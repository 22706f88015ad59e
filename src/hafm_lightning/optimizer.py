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
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hafm_lightning.errors import RequestError
from hafm_lightning.training.internals import unscale_before_step

__all__ = ["FUSED_DEVICES", "OptimizerConfig", "adamw", "follow_settings"]

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
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1), got {beta}")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must be in [0, 1], got {self.final_fraction}")
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


def follow_settings(optimizer: Optimizer, scheduler: LRScheduler | None, config: OptimizerConfig, step: int) -> None:
    """Set an AdamW of :func:`adamw`, loaded from a checkpoint, to ``config`` at optimizer step ``step``.

    A checkpoint brings the parameter groups of its run along: rate, decay and betas. The moments stay; everything else
    is as in a run that began with ``config``, and equal bit for bit where nothing has changed.
    """
    fused = bool(optimizer.defaults["fused"])
    rate = config.learning_rate * config.factor(step)
    for group in optimizer.param_groups:
        group |= {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay, "lr": rate}
        if bool(group.get("fused")) != fused:
            group["fused"] = optimizer.defaults["fused"]
            for parameter in group["params"]:
                taken = optimizer.state.get(parameter, {}).get("step")
                if isinstance(taken, Tensor):  # a fused step counts on the device, every other one on the CPU
                    optimizer.state[parameter]["step"] = taken.to(parameter.device if fused else "cpu")
        if scheduler is None:
            group.pop("initial_lr", None)
        else:
            group["initial_lr"] = config.learning_rate
    if scheduler is not None:
        groups = len(optimizer.param_groups)
        rates = {"base_lrs": [config.learning_rate] * groups, "_last_lr": [rate] * groups}
        scheduler.load_state_dict({**scheduler.state_dict(), **rates, "last_epoch": step, "_step_count": step + 1})
