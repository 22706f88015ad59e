"""What the votes of a study show: tables, intervals, agreement, verdicts; as Markdown, JSON, HTML and on W&B."""

from __future__ import annotations

__all__ = ["output", "report", "statistics", "verdicts"]
