"""A Trainer that fits a line."""

import lightning.pytorch as pl
import torch
from torch import nn

from hafm_lightning.callbacks import (
    AtomicCheckpointIO,
    ExactResume,
)


class Line(pl.LightningModule):
    """One weight that walks down a slope; records what it is validated with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.walked, self.validated = [], []

    def training_step(self, batch, index):
        loss = self.weight.square().sum()
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def on_train_batch_end(self, *_):
        self.walked.append(float(self.weight.detach()))

    def validation_step(self, batch, index):
        self.validated.append(float(self.weight))
        self.log("val/loss", self.weight.square().sum(), batch_size=len(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(tmp_path, *callbacks, logger=False, **settings):
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 8,
            "logger": logger,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
            "plugins": [AtomicCheckpointIO()],
            "callbacks": [ExactResume(), *callbacks],
            **settings,
        }
    )
