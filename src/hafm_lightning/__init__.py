"""Give a singing voice a band: train, run and judge HAFM-style accompaniment models."""

from __future__ import annotations

__version__ = "0.1.0"
