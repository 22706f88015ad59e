"""How the clips of a training step are divided over processes and accumulated batches.

Either the configuration names the clips of a step over everything (``global_batch_size``), so that a run takes the same
steps on any number of devices, or those of a batch on one process (``batch_size``).
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from hafm_lightning.errors import RequestError


@dataclass(frozen=True)
class BatchDivision:
    """The sizes of a step.

    Attributes:
        batch_size: Clips of a batch on one process.
        processes: Processes, each with a device.
        accumulated: Batches of a process whose gradients make one step.
        is_global: Whether the step was divided, rather than made of batches whose size was given. Only then an epoch
            ends with a whole step.
    """

    batch_size: int
    processes: int
    accumulated: int
    is_global: bool

    @property
    def clips(self) -> int:
        """Clips of a step, over all processes and batches."""
        return self.batch_size * self.processes * self.accumulated


def check_sizes(batch_size: int | None, global_batch_size: int | None) -> None:
    """RequestError unless exactly one of them is given, and at least 1."""
    if (batch_size is None) == (global_batch_size is None):
        given = "neither is" if batch_size is None else f"both are ({batch_size} and {global_batch_size})"
        raise RequestError(
            f"one of data.batch_size and data.global_batch_size must be set, but {given}\n"
            "--data.global_batch_size N counts the clips of a step over all devices; to count those of a batch on one "
            "device: --data.global_batch_size null --data.batch_size N"
        )
    name = "global_batch_size" if batch_size is None else "batch_size"
    size = global_batch_size if batch_size is None else batch_size
    if size is not None and size < 1:
        raise RequestError(f"data.{name} is {size}\nbatch sizes start at 1")


def divide(batch_size: int | None, global_batch_size: int | None, trainer: Trainer | None) -> BatchDivision:
    """The sizes of a training step in a run of ``trainer``; without one, of one batch on one process.

    Raises:
        RequestError: The global batch does not divide.
    """
    processes, accumulated = (1, 1) if trainer is None else (trainer.world_size, trainer.accumulate_grad_batches)
    if batch_size is not None:
        return BatchDivision(batch_size, processes, accumulated, is_global=False)
    assert global_batch_size is not None
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in getattr(trainer, "callbacks", ())):
        raise RequestError(
            "data.global_batch_size cannot be divided over the changing numbers of GradientAccumulationScheduler\n"
            "use --trainer.accumulate_grad_batches N, or --data.global_batch_size null --data.batch_size N"
        )
    return BatchDivision(divided(global_batch_size, processes, accumulated), processes, accumulated, is_global=True)


def divided(global_batch_size: int, processes: int, accumulated: int) -> int:
    """Clips of a batch on one process; RequestError if that is no whole number."""
    parts = processes * accumulated
    if global_batch_size % parts == 0:
        return global_batch_size // parts
    sizes = [size for size in (global_batch_size // parts * parts, -(-global_batch_size // parts) * parts) if size]
    advice = f"use --data.global_batch_size {' or '.join(map(str, sizes))}"
    fewer = [count for count in range(1, processes) if global_batch_size % (count * accumulated) == 0]
    if fewer:
        advice += f", or --trainer.devices {max(fewer)}"
    raise RequestError(
        f"data.global_batch_size {global_batch_size} does not divide over {processes} processes with {accumulated} "
        f"batches a step each (trainer.accumulate_grad_batches)\n{advice}"
    )
