"""Silence, noise and drones: sounds without harmony or rhythm score the worst value, music keeps its scores."""

from __future__ import annotations

import numpy as np
import pytest
from coherence_sounds import RATE_HZ, clicks, tones
from toyband_clips import CLIP_RATE_HZ, ToyClip, toy_clips

from hafm_lightning.evaluation.coherence.meaning import is_silent, meaning_of
from hafm_lightning.evaluation.coherence.scores import SongTracks, toy_truth_scores

HARMONY = ("chroma_cosine", "key_score", "chord_accuracy", "chord_root_accuracy")


def coloured(name: str, length: int, rate_hz: int = CLIP_RATE_HZ) -> np.ndarray:
    """Noise of a spectrum's form, at a tenth of full scale."""
    white = np.random.default_rng(0).standard_normal(length)
    spectrum, hz = np.fft.rfft(white), np.fft.rfftfreq(length, 1 / rate_hz)
    forms = {
        "white": np.ones_like(hz),
        "pink": 1 / np.sqrt(np.maximum(hz, 1)),
        "brown": 1 / np.maximum(hz, 1),
        "band": (hz > 300) & (hz < 800),
        "hiss": hz > 4000,
    }
    noise = np.fft.irfft(spectrum * forms[name], length)
    return (0.1 * noise / noise.std()).astype(np.float32)


def all_scores(clip: ToyClip, candidate: np.ndarray) -> dict[str, float]:
    tracks = SongTracks(clip.vocal, clip.accompaniment, CLIP_RATE_HZ)
    return tracks.scores(candidate) | toy_truth_scores(candidate, CLIP_RATE_HZ, clip.truth)


@pytest.mark.parametrize("noise", ["white", "pink", "brown", "band", "hiss"])
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_noise_of_any_colour_and_level_scores_nothing(noise: str, gain: float) -> None:
    """It scored 0.26 in chroma where another song's accompaniment had 0.17, and the vocal's own beats."""
    clip = toy_clips()[0]
    scores = all_scores(clip, gain * coloured(noise, len(clip.vocal)))
    assert scores.pop("beat_phase") == -1.0
    assert set(scores.values()) == {0.0}


@pytest.mark.parametrize("sound", ["zeros", "offset", "dither"])
def test_silence_does_not_get_the_beats_of_the_vocal(sound: str) -> None:
    """Vocal + silence was tracked as the vocal: beats F 0.48, where random pairing had 0.32."""
    clip = toy_clips()[0]
    silence = np.zeros_like(clip.vocal)
    if sound == "offset":
        silence += np.float32(0.5)
    elif sound == "dither":
        silence += np.random.default_rng(0).uniform(-3e-5, 3e-5, len(silence)).astype(np.float32)
    assert is_silent(silence)
    scores = all_scores(clip, silence)
    assert scores.pop("beat_phase") == -1.0
    assert set(scores.values()) == {0.0}


def test_a_drone_has_no_rhythm_and_a_click_track_no_harmony() -> None:
    drone = tones((48, 55), 10.0)
    assert (meaning_of(drone, RATE_HZ).harmony, meaning_of(drone, RATE_HZ).rhythm) == (True, False)
    beats = clicks(np.arange(0, 10, 0.5), 10.0)
    assert (meaning_of(beats, RATE_HZ).harmony, meaning_of(beats, RATE_HZ).rhythm) == (False, True)
    assert not meaning_of(beats, RATE_HZ).lost


def test_music_keeps_its_scores() -> None:
    for clip in toy_clips():
        for sound in (clip.accompaniment, clip.transposed, 0.002 * clip.accompaniment, clip.vocal):
            meaning = meaning_of(sound, CLIP_RATE_HZ)
            assert (meaning.harmony, meaning.rhythm) == (True, True)
        third = len(clip.vocal) // 3
        assert meaning_of(clip.accompaniment[third : 2 * third], CLIP_RATE_HZ).harmony


def test_music_under_noise_is_music() -> None:
    clip = toy_clips()[2]
    level = clip.accompaniment.std() * 0.3
    mixed = clip.accompaniment + level * np.random.default_rng(1).standard_normal(len(clip.vocal)).astype(np.float32)
    assert all_scores(clip, mixed)["chord_accuracy"] > 0.8
