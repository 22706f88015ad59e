"""Import everything that a command may need, once, before children are forked."""

from __future__ import annotations

import importlib

import torch

MODULES = (
    "hafm_lightning.callbacks",
    "hafm_lightning.data_modules",
    "hafm_lightning.stages",
    "hafm_lightning.cli.fit.training",
    "hafm_lightning.cli.generate",
    "hafm_lightning.cli.export",
    "hafm_lightning.cli.prepare",
    "hafm_lightning.cli.evaluate",
    "hafm_lightning.cli.listen.build",
    "hafm_lightning.cli.listen.report",
    "hafm_lightning.evaluation.evaluate",
    "hafm_lightning.evaluation.embeddings.log_mel",
    "hafm_lightning.evaluation.embeddings.weights",
    "hafm_lightning.listening.build",
    "hafm_lightning.listening.report.report",
    "hafm_lightning.listening.report.output",
    "hafm_lightning.preparation.pipeline",
    "hafm_lightning.preparation.report.page",
    "hafm_lightning.tokenizers.offline",
    "librosa",
    "faiss",
    "matplotlib.pyplot",
    "pyloudnorm",
    "scipy.signal",
    "soundfile",
    "soxr",
    "safetensors.torch",
    "sqlite3",
)


def preload() -> None:
    """Import, and leave no thread behind: a fork keeps only the thread that forks."""
    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
