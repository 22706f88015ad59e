"""Judges that answer trials in place of listeners: audio chat models, coherence metrics, the stages themselves."""

from __future__ import annotations

__all__ = ["answers", "audio_chat", "base", "coherence", "families", "processors", "running", "stages"]
