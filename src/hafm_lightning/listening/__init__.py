"""Blind listening trials: a study folder, votes of people and judges, reports."""

from __future__ import annotations

__all__ = [
    "build",
    "judge",
    "power",
    "report",
    "serve",
    "study",
    "trials",
    "vote",
    "votes",
    "webmushra",
    "webmushra_votes",
]
