"""Segments: drawn in rounds, vocal-active, cut as preparation cuts clips."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_music import CLIP_S, SETTINGS, TinyMusic, tiny_selection

from hafm_lightning.audio import read_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import (
    ClipReader,
    MusicClip,
    Segment,
    SegmentSettings,
    around,
    select_segments,
    tokenize_clips,
    vocal_activity,
)
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


@pytest.mark.parametrize(
    ("start_s", "expected"),
    [(3.0, (1.52, 4.0)), (0.0, (0.0, 4.0)), (0.6, (0.0, 4.0)), (6.8, (4.0, 4.0)), (7.0, (4.0, 4.0))],
)
def test_a_segment_lies_in_the_middle_of_its_surroundings(
    music: TinyMusic, start_s: float, expected: tuple[float, float]
) -> None:
    song = tiny_selection(music).segments[0].song  # of 8 s
    wide, before_s = around(Segment(song, start_s, 1.0), 4.0)
    assert (wide.start_s, wide.duration_s) == pytest.approx(expected)
    assert before_s == pytest.approx(start_s - wide.start_s)


def test_surroundings_end_with_the_song_and_never_cut_the_segment(music: TinyMusic) -> None:
    song = tiny_selection(music).segments[0].song
    assert around(Segment(song, 2.0, 1.0), 60.0)[0].duration_s == pytest.approx(8.0)
    assert around(Segment(song, 2.0, 1.0), 0.5) == (Segment(song, 2.0, 1.0), 0.0)


def test_a_short_clip_has_the_tokens_of_its_song(music: TinyMusic, clips: list[MusicClip]) -> None:
    """Tokens of 1 s alone differ from those of the same second in its song, which the stages were trained on."""
    in_song, alone = (tokenize_clips(clips, music.tokenizers, context_s=context_s) for context_s in (4.0, 0.0))
    for name, ids in in_song.streams.items():
        assert ids.shape == alone[name].shape
    for index, clip in enumerate(clips):
        wide, before_s = around(clip.segment, 4.0)
        vocal = read_audio(clip.segment.song.vocals, start_s=wide.start_s, duration_s=4.0, mono=True, rate_hz=16000)
        whole = music.tokenizers.semantic.encode(torch.from_numpy(vocal.samples))[0, 0]
        first = round(before_s * 50)
        assert (in_song["vocal_semantic"][index, 0] == whole[first : first + 50]).float().mean() > 0.9
    assert (in_song["vocal_semantic"] != alone["vocal_semantic"]).float().mean() > 0.02


def test_clips_of_songs_of_unequal_lengths_are_tokenized_together(music: TinyMusic, clips: list[MusicClip]) -> None:
    mixed = [tokenize_clips([clip], music.tokenizers, context_s=6.0) for clip in clips]
    together = tokenize_clips(clips, music.tokenizers, context_s=6.0)
    for name, ids in together.streams.items():
        assert torch.equal(ids, torch.cat([one[name] for one in mixed]))
