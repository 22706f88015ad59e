"""The commands of training and of its configurations: LightningCLI, run folders, figures."""

from __future__ import annotations

__all__ = [
    "checks",
    "command",
    "configs",
    "continuation",
    "describe",
    "ending",
    "errors",
    "predicted_time",
    "runs",
    "saved_config",
    "training",
]
