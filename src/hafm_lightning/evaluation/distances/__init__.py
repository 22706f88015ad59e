"""Distances between sets of embeddings."""

from __future__ import annotations

__all__ = ["adherence", "folders", "frechet", "kernel_distance"]
