"""A model as a system: failed clips, and takes for separated vocals."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_music import CLIP_S

from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import (
    MusicClip,
)
from hafm_lightning.evaluation.systems.band import Band
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.songs.separation import SeparationSettings


class FakeBand:
    """An Accompanist that fails, is silent, or hums, by the clip's loudest sample."""

    def __init__(self, bad: set[str], reason: str) -> None:
        self.bad, self.reason = bad, reason
        self.networks = [SimpleNamespace(role="semantic", sha256="0")]
        self.tokenizers = SimpleNamespace(identities=dict)
        self.precision = "fp32"
        self.window = 25  # grid units: 1 s, as long as the clips
        self.trained_noise_sigma = 0.01
        self.noises: list[float | str] = []
        self.calls: list[int] = []

    def accompany_batch(
        self, vocals: Sequence[Audio], *, seeds: Sequence[int], options: SamplingOptions, vocal_noise: float | str
    ) -> list[Any]:
        self.calls.append(len(vocals))
        self.noises.append(vocal_noise)
        takes = []
        for vocal in vocals:
            samples = np.sin(np.arange(24000, dtype=np.float32) * 0.1)
            if f"{np.abs(vocal.samples).max():.6f}" in self.bad:
                if self.reason == "raises":
                    raise RequestError("the vocal: is silent; there is nothing to accompany")
                samples = samples * (np.float32("nan") if self.reason == "nan" else 0)
            sound = Audio(samples[None], 24000)
            takes.append(SimpleNamespace(instrumental=sound, decoded=sound, sample_rate_hz=24000))
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


def test_the_model_hears_a_short_clip_in_the_song_around_it(clips: list[MusicClip]) -> None:
    """It heard 3 s of vocal and 7 s of digital silence, and its features changed by half."""

    class Echo(FakeBand):
        """Plays the vocal that it hears."""

        def accompany_batch(
            self, vocals: Sequence[Audio], *, seeds: Sequence[int], options: SamplingOptions, vocal_noise: float | str
        ) -> list[Any]:
            self.heard = [vocal.duration_s for vocal in vocals]
            mono = [vocal.mono() for vocal in vocals]
            return [SimpleNamespace(instrumental=it, decoded=it, sample_rate_hz=it.rate_hz) for it in mono]

    band = Echo(set(), "")
    band.window = 100  # 4 s, in songs of 8 s
    system = Band(band, SamplingOptions(), 0, "three_stages")  # type: ignore[arg-type]
    for clip, outcome in zip(clips, system.play(clips), strict=True):
        assert len(outcome.samples) == len(clip.vocal)
        # at the clip's place: resampling with other surroundings is the only difference
        assert np.abs(outcome.samples - clip.vocal)[100:-100].max() < 1e-3 * np.abs(clip.vocal).max()
    assert band.heard == pytest.approx([4.0] * len(clips))


def test_the_card_measures_the_noise_of_training_both_ways(clips: list[MusicClip]) -> None:
    """Stages train on noisy vocals; the card measured only clean ones."""
    band: Any = FakeBand(set(), "")
    noisy = Band(band, SamplingOptions(), 0, "three_stages")
    clean = Band(band, SamplingOptions(), 0, "clean_vocal", noise=False)
    noisy.play(clips[:1])
    clean.play(clips[:1])
    assert band.noises == ["auto", 0.0]
    assert noisy.facts["noise on the vocal"] == 0.01
    assert clean.facts["noise on the vocal"] == 0.0
    before = noisy.identity
    band.trained_noise_sigma = 0.02
    assert Band(band, SamplingOptions(), 0, "three_stages").identity != before


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
