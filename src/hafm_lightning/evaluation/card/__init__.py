"""The evaluation card: its tables, its checks, and its three files."""

from __future__ import annotations

__all__ = ["card", "checks", "dashboard", "page", "pictures"]
