"""Small stages in training, and a Trainer that writes nothing."""

from pathlib import Path

import lightning.pytorch as pl
from tiny_models import TINY, louden, tiny_batch
from torch.utils.data import DataLoader

from hafm_lightning.stages import CoarseStage, FineStage, SemanticStage

FRAMES = {SemanticStage: 4, CoarseStage: 6, FineStage: 6}  # 0.08 s


def tiny_stage(kind=CoarseStage, **settings):
    stage = kind(backbone=TINY, **settings)
    louden(stage.model)
    return stage


def clips(stage, count=4, seed=0, songs=None):
    return tiny_batch(stage.model.layout, FRAMES[type(stage)], count, seed, songs)


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


def trainer(folder: Path, **settings):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "max_steps": 1,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**defaults | settings)
