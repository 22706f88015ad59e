"""A synthetic band with a known truth: scores, a voice, instruments, songs in the MUSDB18-HQ folder layout."""

from __future__ import annotations

__all__ = ["band", "corpus", "score", "voice"]
