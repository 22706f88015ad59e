"""Mutants that survive because the change changes nothing, or nothing that is promised."""

from __future__ import annotations

EXPLAINED: dict[str, dict[str, str]] = {}
"""Module -> the mutant's name, as ``mutants.py`` prints it -> why it survives."""
