"""How good is the music, and how sure is that: embeddings, distances, coherence, controls, probes, and the card.

Start at :mod:`hafm_lightning.evaluation.evaluate` (one run from settings to card), or take the parts: pure functions
on arrays (:mod:`~hafm_lightning.evaluation.distances.frechet`, :mod:`~hafm_lightning.evaluation.coherence.scores`).
`docs/evaluation.md` explains what each number can and cannot show.
"""

from __future__ import annotations

__all__ = [
    "card",
    "coherence",
    "contrasts",
    "distances",
    "embeddings",
    "evaluate",
    "intervals",
    "protocol",
    "seeds",
    "segments",
    "settings",
    "stage",
    "systems",
    "token_scores",
    "tuning",
]
