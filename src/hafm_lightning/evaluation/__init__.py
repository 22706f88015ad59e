"""How good is the music, and how sure is that: embeddings, distances, coherence, controls, probes, and the card.

Start at :mod:`hafm_lightning.evaluation.evaluate` (one run from settings to card), or take the parts: pure functions on
arrays (:mod:`~hafm_lightning.evaluation.frechet`, :mod:`~hafm_lightning.evaluation.kernel`,
:mod:`~hafm_lightning.evaluation.coherence`), and `docs/evaluation.md` for what each number can and cannot say.
"""
