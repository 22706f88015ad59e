"""Logs speed, utilisation, memory, learning rate, and the paper's values, at the trainer's ``log_every_n_steps``.

``speed/tokens_per_s``, ``speed/steps_per_s``
    Target tokens and optimizer steps a second since the last row, over all processes, without validation and saving.
``speed/data_wait``
    Share of that time in which the training waited for its batch.
``speed/mfu``
    Model FLOPs utilisation: ``stage.flops_per_step(batch)`` (with attention, without recomputation) over the device's
    peak at the run's precision without sparsity. Missing where either is unknown; a line in the log gives the reason.
``system/memory_gib``, ``system/gpu_memory_gib``
    Peak memory of the process, and of PyTorch on the GPU.
``train/learning_rate``
    Of the first parameter group.
``val/loss_paper``, ``val/accuracy_paper``
    The paper's best values for this stage, a level line in every plot; only where the tokens are the paper's.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from hafm_lightning.tokens import TokenBatch
from hafm_lightning.training.gpus import PEAK_TFLOPS, chip_of
from hafm_lightning.training.internals import finishes_step, writes_row
from hafm_lightning.training.protocols import CountsFlops, HasClock, TokenSource

GIB = 2**30
PAPER_VALUES = {
    "SemanticStage": {"val/loss_paper": 2.4441, "val/accuracy_paper": 0.46},
    "CoarseStage": {"val/loss_paper": 3.9029, "val/accuracy_paper": 0.20},
    "FineStage": {"val/loss_paper": 4.7696, "val/accuracy_paper": 0.10},
}
"""Best cross-entropy on the validation clips (nats), and top-1 accuracy at that point: figures 4 to 6 and section 4."""
PAPER_TOKENIZERS = {"semantic": "hubert", "acoustic": "encodec"}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a device at a trainer's ``precision``; None where it is unknown."""
    if device.type != "cuda":
        return None
    chip = chip_of(torch.cuda.get_device_name(device))
    single = "single" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return PEAK_TFLOPS[chip]["half" if "16" in precision else single] * 1e12 if chip else None


class Dashboard(Callback):
    """Logs speed, utilisation, memory and the paper's values."""

    def __init__(self, paper: bool | None = None) -> None:
        """Settings of ``dashboard`` in the configuration.

        Args:
            paper: Whether to log the paper's values; by default where the shards hold the paper's tokens.
        """
        self.paper = paper
        self._peak: float | None = None
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._seconds = self._waited = self._flops = 0.0
        self._tokens = self._steps = 0
        self._last: float | None = None  # time of the last hook; none during a validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks; print the reason where ``speed/mfu`` cannot be computed."""
        self._restart_clock()
        for logger in trainer.loggers:
            if isinstance(logger, HasClock):
                logger.start_clock()
            if isinstance(logger, WandbLogger) and isinstance(pl_module, TokenSource):
                logger.log_hyperparams({"tokenizers": {k: dict(v) for k, v in pl_module.tokenizers.items()}})
        self._peak = peak_flops(pl_module.device, str(trainer.precision))
        if self._peak is None:
            rank_zero_info(f"no speed/mfu: the peak FLOP/s of this {pl_module.device.type} device are not known")
        elif not isinstance(pl_module, CountsFlops):
            rank_zero_info(f"no speed/mfu: {type(pl_module).__name__} has no flops_per_step(batch)")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time of waiting for the batch."""
        self._waited += self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and log at the trainer's interval."""
        stepped = finishes_step(trainer)
        streams = batch.streams if isinstance(batch, TokenBatch) else {}
        target = getattr(pl_module, "target", None)  # a module of the user's own may have none: count all streams
        self._tokens += sum(ids.numel() for name, ids in streams.items() if target in (None, name))
        self._steps += int(stepped)
        if isinstance(pl_module, CountsFlops):
            self._flops += float(pl_module.flops_per_step(batch))
        logging = stepped and writes_row(trainer) and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if logging and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._lap()
        if logging:
            pl_module.log_dict(self._values(trainer, pl_module), batch_size=1)
            self._restart_clock()
            self._last = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock until the next training batch."""
        self._last = None

    def _lap(self) -> float:
        """Seconds of training since the last lap, added to the total."""
        last, self._last = self._last, time.perf_counter()
        lap = 0.0 if last is None else self._last - last
        self._seconds += lap
        return lap

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the paper's values as level lines."""
        values = PAPER_VALUES.get(type(pl_module).__name__)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or values is None:
            return
        identities = pl_module.tokenizers if isinstance(pl_module, TokenSource) else {}
        kinds = {name: identity.get("kind") for name, identity in identities.items()}
        if self.paper or (self.paper is None and kinds == PAPER_TOKENIZERS):
            pl_module.log_dict(values, batch_size=1)

    def _values(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        seconds = max(self._seconds, 1e-9)
        values = {
            "speed/tokens_per_s": self._tokens * trainer.world_size / seconds,
            "speed/steps_per_s": self._steps / seconds,
            "speed/data_wait": self._waited / seconds,
            "system/memory_gib": peak_memory_gib(),
            "train/learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        if pl_module.device.type == "cuda":
            values["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / GIB
        if self._peak is not None and isinstance(pl_module, CountsFlops):
            values["speed/mfu"] = self._flops / seconds / self._peak
        return values


def peak_memory_gib() -> float:
    """Peak memory of this process."""
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
