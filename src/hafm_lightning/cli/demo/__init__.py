"""The `demo` command."""

from __future__ import annotations

__all__ = ["command", "fits"]
