"""The commands of training and of its configurations: LightningCLI, run folders, figures."""

from __future__ import annotations

__all__ = [
    "checks",
    "command",
    "continuation",
    "curves",
    "describe",
    "ending",
    "errors",
    "runs",
    "saved_config",
    "training",
]
