"""The rows of the card: what plays for each vocal (``base`` lists all), and its results on disk (``generations``)."""

from __future__ import annotations

__all__ = ["band", "base", "controls", "generations", "models", "retrieval", "separated"]
