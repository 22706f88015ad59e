"""What every test shares: no network, no display, one thread, the repository's root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Set before any package reads them: tests never reach a hub, a dashboard or a display.
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", MPLBACKEND="Agg"
)
torch.set_num_threads(1)  # tiny tensors gain nothing from more, and two workers share the cores


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
