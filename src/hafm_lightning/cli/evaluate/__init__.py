"""``evaluate``: ``command`` runs it, ``summary`` is what it prints, ``sampling`` searches guidance and sampling."""

from __future__ import annotations

from hafm_lightning.cli.evaluate.command import main, with_best_checkpoints, with_lists, without_switches

__all__ = ["main", "with_best_checkpoints", "with_lists", "without_switches"]
