"""Pages for people: one HTML template for every report, and the figures and pictures on them."""

from __future__ import annotations

__all__ = ["document", "figures"]
