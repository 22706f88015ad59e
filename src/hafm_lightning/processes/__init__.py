"""Processes of one machine: a pool of workers, and locks between programs."""

from __future__ import annotations

__all__ = ["launchers", "locks", "pool"]
