"""Seeds by purpose: choices that have nothing to do with each other do not draw the same random numbers."""

from __future__ import annotations

from hafm_lightning.files import sha256_of_json


def seed_of(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose (``"swapped pairs"``; an embedding and a number of a clip) of a run with ``seed``."""
    return int(sha256_of_json([seed, *purpose])[:15], 16)
