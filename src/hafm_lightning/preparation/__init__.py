"""Preparation: songs become shards of tokens; a run may be stopped anywhere and continued.

Start at :mod:`~hafm_lightning.preparation.pipeline`, which runs the steps; ``configuration`` holds its settings. The
steps: ``survey`` and ``plan`` (songs and their shards), ``tokenizer_training``, ``shard_work`` (one shard), ``report``.
Beside them: ``quality`` (filter and duplicates), ``run_state`` (to continue), ``engine`` (where the work runs), and
``verification`` of the result.
"""

from __future__ import annotations

__all__ = [
    "cap",
    "configuration",
    "engine",
    "pipeline",
    "plan",
    "quality",
    "report",
    "run_state",
    "shard_work",
    "survey",
    "tokenizer_training",
    "verification",
]
