"""Retrieval."""

from __future__ import annotations

import numpy as np
from tiny_music import TinyMusic

from hafm_lightning.evaluation.systems.retrieval import Retrieval
from hafm_lightning.shards import open_shards


def test_retrieval_finds_a_training_vocal_again(music: TinyMusic) -> None:
    retrieval = Retrieval(open_shards(music.shards, "train"), music.tokenizers)
    shard_clips = retrieval.reader.clip_ids
    for index in (0, 3, 5):
        tokens = retrieval.reader[index]["vocal_semantic"][0].astype(np.int64)
        found = retrieval.nearest(tokens)
        assert found is not None
        assert (shard_clips[found[0]], found[1]) == (shard_clips[index], 0.0)
        # 0.6 s of it, from 0.4 s on
        assert retrieval.nearest(tokens[20:]) == (index, 0.4)
    assert retrieval.nearest(np.zeros(51, np.int64)) is None
