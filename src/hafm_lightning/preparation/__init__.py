"""Preparation: songs become shards of tokens; a run may be stopped anywhere and continued.

Start at :mod:`~hafm_lightning.preparation.pipeline`, which goes through the steps; ``configuration`` is its YAML file.
On the way: ``survey`` and ``plan`` (the songs, and the shards they go to), ``quality`` (the filter and duplicates),
``tokenizer_training``, ``shard_work`` (one shard), ``run_state`` (the files of a stopped run), ``report`` and
``verification``. ``engines`` chooses where the work runs.
"""
