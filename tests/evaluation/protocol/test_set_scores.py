"""Numbers of whole sets of clips and their intervals; the ranking of codec and noise."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_music import TinyMusic, tiny_selection

from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.protocol.set_scores import Reference, clip_rows, fad_of, kd_of
from hafm_lightning.evaluation.segments import (
    MusicClip,
    load_clip,
)
from hafm_lightning.evaluation.systems.base import (
    ThroughCodec,
)


def test_set_scores_are_those_of_all_rows(clips: list[MusicClip]) -> None:
    embedding = LogMelEmbedding()
    rows = [clip_rows(embedding, clip.accompaniment, 24000) for clip in clips]
    vocals = np.concatenate([clip_rows(embedding, clip.vocal, 24000) for clip in clips])
    reference = Reference("vocals", GaussianStatistics.from_rows(vocals), vocals)
    songs = [clip.segment.song.id for clip in clips]
    expected = frechet_distance(GaussianStatistics.from_rows(np.concatenate(rows)), reference.statistics)
    assert fad_of(rows, songs, reference).value == pytest.approx(expected, rel=1e-6)
    kd = kd_of(rows, songs, reference, 0)
    assert kd is not None
    assert kd.value > 0


def test_fad_ranks_clean_codec_and_noise(music: TinyMusic) -> None:
    segments = tiny_selection(music, clips=0, per_song=9).segments
    everything = [load_clip(segment, music.tokenizers) for segment in segments]
    embedding, songs = LogMelEmbedding(), [segment.song.id for segment in segments]
    true = [clip_rows(embedding, clip.accompaniment, 24000) for clip in everything]
    reference = Reference("true", GaussianStatistics.from_rows(np.concatenate(true)), np.concatenate(true))
    noise = np.random.default_rng(0).standard_normal((len(everything), 24000)).astype(np.float32) * 0.1
    variants = {
        "clean": true,
        "codec 8": [clip_rows(embedding, o.samples, 24000) for o in ThroughCodec(music.tokenizers, 8).play(everything)],
        "codec 4": [clip_rows(embedding, o.samples, 24000) for o in ThroughCodec(music.tokenizers, 4).play(everything)],
        "noise": [clip_rows(embedding, samples, 24000) for samples in noise],
    }
    distances = [fad_of(rows, songs, reference).value for rows in variants.values()]
    assert distances == sorted(distances)
    assert len(set(distances)) == 4
