"""The report of `prepare`: figures, page, logs."""

from __future__ import annotations

__all__ = ["cautions", "logs", "page", "report"]
