"""Rows that cannot be an accompaniment."""

from __future__ import annotations

import numpy as np

from hafm_lightning.evaluation.coherence.meaning import meaning_of
from hafm_lightning.evaluation.segments import MusicClip
from hafm_lightning.evaluation.settings import EvaluateSettings
from hafm_lightning.evaluation.systems.base import fitted
from hafm_lightning.evaluation.systems.controls import CONTROLS, Noise


def test_controls_play_what_they_say(clips: list[MusicClip]) -> None:
    played = {name: make(3).play(clips) for name, make in CONTROLS.items()}
    for index, clip in enumerate(clips):
        vocal, silence, noise = (played[name][index].samples for name in ("vocal_alone", "silence", "noise"))
        np.testing.assert_array_equal(vocal, clip.vocal)
        assert not silence.any()
        assert noise.shape == silence.shape == clip.accompaniment.shape
        level = np.sqrt(np.mean(clip.accompaniment**2))
        np.testing.assert_allclose(noise.std(), level, rtol=0.05)
        assert meaning_of(silence, clip.acoustic_hz).lost
        assert meaning_of(noise, clip.acoustic_hz).lost


def test_the_noise_of_clips_is_independent_and_repeats(clips: list[MusicClip]) -> None:
    first, second = (outcome.samples for outcome in Noise(3).play(clips[:2]))
    np.testing.assert_array_equal(first, Noise(3).play(clips[:1])[0].samples)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert abs(np.corrcoef(first, Noise(4).play(clips[:1])[0].samples)[0, 1]) < 0.05


def test_a_card_shows_the_controls_by_default() -> None:
    assert {"vocal_alone", "silence", "noise", "random", "codec_8"} <= set(EvaluateSettings.systems)


def test_a_sound_that_cannot_be_heard_is_a_failure(clips: list[MusicClip]) -> None:
    """Only digital zeros were: a decoder's dither scored as music."""
    dither = np.random.default_rng(0).uniform(-3e-5, 3e-5, len(clips[0].accompaniment)).astype(np.float32)
    for sound in (dither, np.full_like(dither, 0.2), np.zeros_like(dither)):
        assert fitted(clips[0], sound).failure == "the sound is silent"
