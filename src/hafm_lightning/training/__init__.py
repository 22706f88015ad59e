"""What training needs beside Lightning's own hooks: its private names, what parts offer each other, means of scores."""

from __future__ import annotations

__all__ = ["internals", "protocols", "signals", "step_weights", "token_means"]
