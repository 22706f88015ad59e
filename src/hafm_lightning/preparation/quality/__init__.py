"""Quality of clips and songs: the filter with its measurements, and duplicates by fingerprint."""

from __future__ import annotations

__all__ = ["filters", "fingerprint"]
