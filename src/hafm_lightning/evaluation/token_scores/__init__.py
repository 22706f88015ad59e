"""Scores on tokens: cross-entropy under true, null and exchanged conditions."""

from __future__ import annotations

__all__ = ["probes", "scores", "table"]
