"""The trials of a study: which are compared, from which sounds, and how these are made alike."""

from __future__ import annotations

__all__ = ["draw", "material", "settings", "sounds"]
