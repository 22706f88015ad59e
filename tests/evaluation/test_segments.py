"""Segments: drawn in rounds, vocal-active, cut as preparation cuts clips."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_music import CLIP_S, SETTINGS, TinyMusic, tiny_selection

from hafm_lightning.audio import read_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import ClipReader, SegmentSettings, select_segments, vocal_activity
from hafm_lightning.songs.clips import MARGIN_S, clip_sound
from hafm_lightning.songs.stems import cut_windows, read_blocks


def test_segments_are_drawn_in_rounds_over_songs_and_do_not_overlap(music: TinyMusic) -> None:
    chosen = tiny_selection(music)
    songs = [segment.song.id for segment in chosen.segments]
    assert len(set(songs[:3])) == 3
    assert len(set(songs[3:])) == 3
    everything = chosen.segments + chosen.spare
    for first in everything:
        for second in everything:
            if first is not second and first.song.id == second.song.id:
                assert abs(first.start_s - second.start_s) >= CLIP_S
    assert [s.clip_id for s in tiny_selection(music).segments] == [s.clip_id for s in chosen.segments]
    assert [s.clip_id for s in tiny_selection(music, seed=1).segments] != [s.clip_id for s in chosen.segments]


def test_segments_are_vocal_active(music: TinyMusic) -> None:
    for segment in tiny_selection(music, clips=0, per_song=9, active=0.8).segments:
        vocal = read_audio(segment.song.vocals, mono=True)
        active = vocal_activity(vocal.samples[0], vocal.rate_hz, -30.0)
        first = round(segment.start_s * 10)
        assert active[first : first + round(CLIP_S * 10)].mean() >= 0.8


def test_activity_follows_the_loudness_of_the_voice() -> None:
    level = np.repeat([1.0, 0.5, 0.02, 0.0, 1.0], 1600).astype(np.float32)
    vocal = level * np.sin(np.arange(8000) * 0.3).astype(np.float32)
    assert vocal_activity(vocal, 16000, -30.0).tolist() == [True, True, False, False, True]
    assert not vocal_activity(np.zeros(8000, np.float32), 16000, -30.0).any()


def test_too_few_segments_and_unreadable_songs_are_told(music: TinyMusic, tmp_path: Path) -> None:
    assert tiny_selection(music, clips=500).missing == 500 - len(tiny_selection(music, clips=500).segments)
    shutil.copytree(music.songs, tmp_path / "songs")
    (tmp_path / "songs" / "test" / "toyband_test_0001" / "vocals.wav").write_bytes(b"not audio")
    chosen = select_segments(SegmentSettings(str(tmp_path / "songs"), **SETTINGS))
    assert chosen.songs == 2
    assert len(chosen.problems) == 1
    assert "toyband_test_0001" in chosen.problems[0]
    with pytest.raises(RequestError, match="no vocal-active segment"):
        tiny_selection(music, duration_s=60.0)


def test_a_segment_sounds_as_preparation_cuts_it(music: TinyMusic) -> None:
    for segment in tiny_selection(music, clips=3).segments:
        window = next(cut_windows(read_blocks(segment.song, None), 44100, iter([segment.start_s]), CLIP_S, MARGIN_S))
        expected, found = clip_sound(window, 16000, 24000, True), ClipReader(16000, 24000)(segment).sound
        np.testing.assert_allclose(found.vocal, expected.vocal, atol=1e-6)
        np.testing.assert_allclose(found.instrumental_acoustic, expected.instrumental_acoustic, atol=1e-6)
        assert found.vocal.shape == (16000,)
