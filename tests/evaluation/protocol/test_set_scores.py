"""Numbers of whole sets of clips and their intervals; the ranking of codec and noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_music import TinyMusic, tiny_selection

from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.protocol.set_scores import Reference, embedding_rows, fad_of, kd_of
from hafm_lightning.evaluation.segments import MusicClip, load_clip
from hafm_lightning.evaluation.systems.base import ThroughCodec


def test_set_scores_are_those_of_all_rows(clips: list[MusicClip]) -> None:
    embedding = LogMelEmbedding()
    rows = [embedding_rows(embedding, [clip.accompaniment], 24000) for clip in clips]
    vocals = embedding_rows(embedding, [clip.vocal for clip in clips], 24000)
    reference = Reference("vocals", GaussianStatistics.from_rows(vocals), vocals)
    songs = [clip.segment.song.id for clip in clips]
    expected = frechet_distance(GaussianStatistics.from_rows(np.concatenate(rows)), reference.statistics)
    assert fad_of(rows, songs, reference).value == pytest.approx(expected, rel=1e-6)
    assert (kd_of(rows, songs, reference, 0).value or 0) > 0
    assert kd_of(rows, songs, replace(reference, rows=None), 0).value is None


def test_fad_ranks_clean_codec_and_noise(music: TinyMusic) -> None:
    segments = tiny_selection(music, clips=0, per_song=9).segments
    everything = [load_clip(segment, music.tokenizers) for segment in segments]
    embedding, songs = LogMelEmbedding(), [segment.song.id for segment in segments]
    true = [embedding_rows(embedding, [clip.accompaniment], 24000) for clip in everything]
    reference = Reference("true", GaussianStatistics.from_rows(np.concatenate(true)), np.concatenate(true))
    noise = np.random.default_rng(0).standard_normal((len(everything), 24000)).astype(np.float32) * 0.1
    codecs = {
        f"codec {codebooks}": [
            embedding_rows(embedding, [outcome.samples], 24000)
            for outcome in ThroughCodec(music.tokenizers, codebooks).play(everything)
        ]
        for codebooks in (8, 4)
    }
    variants = {
        "clean": true,
        **codecs,
        "noise": [embedding_rows(embedding, [samples], 24000) for samples in noise],
    }
    distances = [fad_of(rows, songs, reference).value for rows in variants.values()]
    assert distances == sorted(distances)
    assert len(set(distances)) == 4
