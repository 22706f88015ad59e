"""Segments, systems and what is kept of them, on a tiny toy band."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_music import CLIP_S, SETTINGS, TinyMusic, tiny_selection

from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import (
    MusicClip,
    SegmentSettings,
    load_clip,
    read_segment,
    select_segments,
    vocal_activity,
)
from hafm_lightning.evaluation.systems.base import (
    Band,
    GroundTruth,
    Outcome,
    RandomPairing,
    System,
    ThroughCodec,
    fitted,
)
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.evaluation.systems.retrieval import Retrieval
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.shards import open_shards
from hafm_lightning.songs.clips import MARGIN_S, clip_sound
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.songs.stems import cut_windows, read_blocks

# --- segments ---------------------------------------------------------------------------------------------------


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
        expected, found = clip_sound(window, 16000, 24000, True), read_segment(segment, 16000, 24000)
        np.testing.assert_allclose(found.vocal, expected.vocal, atol=1e-6)
        np.testing.assert_allclose(found.instrumental_acoustic, expected.instrumental_acoustic, atol=1e-6)
        assert found.vocal.shape == (16000,)


# --- systems ----------------------------------------------------------------------------------------------------


def test_codec_ceiling_is_the_decoded_truth(music: TinyMusic, clips: list[MusicClip]) -> None:
    for codebooks in (8, 4):
        codes = music.tokenizers.acoustic.encode(torch.from_numpy(clips[0].accompaniment)[None])
        expected = music.tokenizers.acoustic.decode(codes[:, :codebooks])[0].numpy()
        (outcome,) = ThroughCodec(music.tokenizers, codebooks).play(clips[:1])
        np.testing.assert_array_equal(outcome.samples, expected)


def test_random_pairing_takes_unevaluated_music_of_other_songs(music: TinyMusic) -> None:
    chosen = tiny_selection(music, clips=3)
    pairing = RandomPairing(chosen.segments, chosen.spare, lambda s: load_clip(s, music.tokenizers), seed=0)
    evaluated = {segment.clip_id for segment in chosen.segments}
    for segment in chosen.segments:
        partner = pairing.partners[segment.clip_id]
        assert partner.song.id != segment.song.id
        assert partner.clip_id not in evaluated
    without_spare = RandomPairing(chosen.segments, [], lambda s: load_clip(s, music.tokenizers), seed=0)
    assert all(without_spare.partners[s.clip_id].song.id != s.song.id for s in chosen.segments)


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


class FakeBand:
    """An Accompanist that fails, is silent, or hums, by the clip's loudest sample."""

    def __init__(self, bad: set[str], reason: str) -> None:
        self.bad, self.reason = bad, reason
        self.networks = [SimpleNamespace(role="semantic", sha256="0")]
        self.tokenizers = SimpleNamespace(identities=dict)
        self.precision = "fp32"
        self.calls: list[int] = []

    def accompany_batch(self, vocals: Sequence[Audio], *, seeds: Sequence[int], options: SamplingOptions) -> list[Any]:
        self.calls.append(len(vocals))
        takes = []
        for vocal in vocals:
            samples = np.sin(np.arange(24000, dtype=np.float32) * 0.1)
            if f"{np.abs(vocal.samples).max():.6f}" in self.bad:
                if self.reason == "raises":
                    raise RequestError("the vocal: is silent; there is nothing to accompany")
                samples = samples * (np.float32("nan") if self.reason == "nan" else 0)
            takes.append(SimpleNamespace(instrumental=Audio(samples[None], 24000), sample_rate_hz=24000))
        return takes


@pytest.mark.parametrize(
    ("reason", "message"), [("raises", "is silent"), ("nan", "NaN"), ("silent", "sound is silent")]
)
def test_a_failed_clip_is_silence_with_a_reason_and_spares_the_others(
    clips: list[MusicClip], reason: str, message: str
) -> None:
    vocal = read_audio(clips[1].segment.song.vocals, start_s=clips[1].segment.start_s, duration_s=CLIP_S)
    band = FakeBand({f"{np.abs(vocal.samples).max():.6f}"}, reason)
    outcomes = Band(band, SamplingOptions(), 0, "three_stages").play(clips[:3])  # type: ignore[arg-type]
    assert [bool(outcome.failure) for outcome in outcomes] == [False, True, False]
    assert message in outcomes[1].failure
    assert not outcomes[1].samples.any()
    assert all(len(outcome.samples) == 24000 for outcome in outcomes)
    assert all(outcome.seconds is not None for outcome in outcomes)


def test_takes_for_other_separated_vocals_are_made_anew(tmp_path: Path) -> None:
    band: Any = FakeBand(set(), "")

    def identity(name: str) -> str:
        vocals = SeparatedVocals(str(tmp_path / name), SeparationSettings())
        return Band(band, SamplingOptions(), 0, "separated", vocals).identity

    for name, samples in (("first", 100), ("second", 200)):
        write_audio(tmp_path / name / "song" / "vocals.wav", Audio(np.ones((1, samples), np.float32), 44100))
    before = identity("first"), identity("second")
    shutil.copytree(tmp_path / "second", tmp_path / "first", dirs_exist_ok=True)  # other vocals in the same folder
    assert len({*before, identity("first")}) == 3


def test_sounds_are_fitted_to_the_clip(clips: list[MusicClip]) -> None:
    short, long = np.ones(100, np.float32), np.ones(30000, np.float32)
    assert fitted(clips[0], short).samples.sum() == 100
    assert len(fitted(clips[0], long).samples) == len(clips[0].accompaniment)


class Counting(GroundTruth):
    def __init__(self, identity: str = "a") -> None:
        super().__init__()
        self.identity = identity
        self.played = 0

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        self.played += len(clips)
        return [replace(outcome, seconds=2.0) for outcome in super().play(clips)]


def test_generations_are_kept_and_a_stopped_run_continues(music: TinyMusic, tmp_path: Path) -> None:
    segments = tiny_selection(music).segments

    def play(system: System, upto: int) -> Generations:
        made = Generations(tmp_path, system, 24000)
        made.make(segments[:upto], lambda s: load_clip(s, music.tokenizers), 2, lambda _: None)
        return made

    system = Counting()
    play(system, 3)
    made = play(system, 6)
    assert system.played == 6
    clip = load_clip(segments[4], music.tokenizers)
    np.testing.assert_array_equal(made.outcome(segments[4]).samples, clip.accompaniment)
    assert made.outcome(segments[4]).seconds == 2.0
    (made.folder / made.entries[segments[4].key].file).unlink()
    play(system, 6)
    assert system.played == 7
    longer = replace(segments[0], duration_s=CLIP_S + 0.04)
    assert Generations(tmp_path, system, 24000).missing([longer]) == [longer]
    other = Counting("b")
    play(other, 6)
    assert other.played == 6
    (made.folder / "index.json").write_text("{}")
    with pytest.raises(RequestError, match="damaged"):
        Generations(tmp_path, system, 24000)
