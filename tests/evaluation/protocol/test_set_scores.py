"""Numbers of whole sets of clips and their intervals; the ranking of codec and noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_music import TinyMusic, tiny_selection

from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.protocol.set_scores import (
    Reference,
    apa_score,
    embedding_rows,
    fad_infinity_of,
    fad_of,
    kd_of,
    swapped_partners,
)
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


def test_failed_clips_cannot_lower_a_distance() -> None:
    """Silence may be nearer to the reference than what a system plays: a loud, wrong sound."""
    generator = np.random.default_rng(0)
    true = generator.standard_normal((200, 4)).astype(np.float32)
    reference = Reference("true", GaussianStatistics.from_rows(true), true)
    songs = [f"song {index}" for index in range(10)]
    wrong = [generator.standard_normal((10, 4)).astype(np.float32) + 9 for _ in songs]
    silent = [np.zeros((10, 4), np.float32) if index < 5 else rows for index, rows in enumerate(wrong)]
    failed = set(range(5))
    for score in (fad_of(silent, songs, reference, failed), kd_of(silent, songs, reference, 0, failed)):
        assert score.value is not None
    assert (fad_of(silent, songs, reference).value or 0) < (fad_of(wrong, songs, reference).value or 0)
    alone = fad_of(wrong[5:], songs[5:], reference).value
    assert fad_of(silent, songs, reference, failed).value == pytest.approx(alone)
    alone = kd_of(wrong[5:], songs[5:], reference, 0).value
    assert (kd_of(silent, songs, reference, 0, failed).value or 0) == pytest.approx(alone, rel=1e-6)
    far = [np.full((10, 4), 30, np.float32) if index < 5 else rows for index, rows in enumerate(wrong)]
    assert fad_of(far, songs, reference, failed).value == fad_of(far, songs, reference).value


def test_silent_candidates_count_as_swapped_pairs() -> None:
    generator = np.random.default_rng(0)
    songs = 8
    true = [generator.standard_normal((4, 3)) for _ in range(songs)]
    swapped = [generator.standard_normal((4, 3)) + 2 for _ in range(songs)]
    nothing = [np.zeros((0, 3)) for _ in range(songs)]
    everything = list(range(songs))
    assert apa_score(nothing, true, swapped)(everything) == pytest.approx(0.0)
    assert apa_score(true, true, swapped)(everything) == pytest.approx(1.0)


def test_fad_infinity_is_not_computed_from_few_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    reference = Reference("true", GaussianStatistics.from_rows(rows), rows)
    assert fad_infinity_of(rows[:64], reference, 0).value is not None
    few = fad_infinity_of(rows[:63], reference, 0)
    assert few.value is None
    assert few.note.startswith("not computed")
    small = Reference("true", GaussianStatistics.from_rows(rows[:31]), rows[:31])
    assert fad_infinity_of(rows, small, 0).value is None


def test_swapped_pairs_avoid_the_partners_of_random_pairing() -> None:
    songs = [f"song {index // 2}" for index in range(10)]
    clips = [f"clip {index}" for index in range(10)]
    plain = swapped_partners(songs, clips, [""] * 10, 0)
    taken = [clips[partner] for partner in plain]
    found = swapped_partners(songs, clips, taken, 0)
    for index, partner in enumerate(found):
        assert songs[partner] != songs[index]
        assert clips[partner] != taken[index]
