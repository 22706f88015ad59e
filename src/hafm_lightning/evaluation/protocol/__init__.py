"""From clips to cells: one protocol of the card."""

from __future__ import annotations

__all__ = ["clip_scores", "columns", "set_scores", "table"]
