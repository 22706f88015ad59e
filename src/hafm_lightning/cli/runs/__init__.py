"""Several runs: `compare` reads what they left (`records`) and shows it (`compare`, `drawing`), `sweep` plans them."""

from __future__ import annotations

__all__ = ["compare", "curves", "drawing", "records", "sweep"]
