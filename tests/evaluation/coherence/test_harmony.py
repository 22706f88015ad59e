"""Chroma and key of constructed signals."""

from __future__ import annotations

import numpy as np
import pytest
from coherence_sounds import RATE_HZ, chroma_cosine, key_agreement, tones

from hafm_lightning.evaluation.coherence.harmony import (
    HarmonyTrack,
    compare_keys,
    estimate_key,
)


@pytest.mark.parametrize("pitch_class", range(12))
def test_a_tone_has_the_chroma_of_its_pitch_class(pitch_class):
    for octave in (48, 60, 72):
        chroma = HarmonyTrack(tones((octave + pitch_class,)), RATE_HZ).chroma[5:-5]
        assert np.all(chroma[:, pitch_class] > 0.95)


def test_cosine_of_octaves_is_one_and_of_other_pitches_is_none():
    vocal = tones((64,))
    assert chroma_cosine(vocal, tones((52, 76)), RATE_HZ) > 0.95
    assert chroma_cosine(vocal, tones((60, 63, 67)), RATE_HZ) < 0.1
    # E is one of three equally strong tones of C major.
    assert chroma_cosine(vocal, tones((60, 64, 67)), RATE_HZ) == pytest.approx(1 / np.sqrt(3), abs=0.08)


def test_noise_hardly_counts_as_harmony():
    noise = 0.03 * np.random.default_rng(0).standard_normal(4 * RATE_HZ).astype(np.float32)
    vocal = tones((64,), 4.0)
    clean = chroma_cosine(vocal, tones((60, 64, 67), 4.0), RATE_HZ)
    assert chroma_cosine(vocal, tones((60, 64, 67), 4.0) + noise, RATE_HZ) > clean - 0.1
    # Any frame of noise alone has a shape, but none that stays: over time it favours no pitch class.
    assert chroma_cosine(vocal, noise, RATE_HZ) < 0.45


def test_only_voiced_frames_of_the_vocal_count():
    hiss = np.diff(np.random.default_rng(0).standard_normal(RATE_HZ + 1)).astype(np.float32) * 0.05
    vocal = np.concatenate([tones((64,)), np.zeros(RATE_HZ, np.float32), hiss])
    right_while_sung = np.concatenate([tones((64,)), tones((61,)), tones((61,))])
    wrong_while_sung = np.concatenate([tones((61,)), tones((64,)), tones((64,))])
    assert chroma_cosine(vocal, right_while_sung, RATE_HZ) > 0.9
    assert chroma_cosine(vocal, wrong_while_sung, RATE_HZ) < 0.15


def test_silence_agrees_with_nothing():
    silence, sound = np.zeros(RATE_HZ, np.float32), tones((60,))
    assert chroma_cosine(silence, sound, RATE_HZ) == chroma_cosine(sound, silence, RATE_HZ) == 0.0
    assert key_agreement(sound, silence, RATE_HZ) == key_agreement(silence, sound, RATE_HZ) == 0.0
    assert estimate_key(np.ones(12)) is None


def cadence(tonic: int, mode: str) -> np.ndarray:
    """Tonic, subdominant, dominant, tonic; the minor with its major dominant."""
    third = 4 if mode == "major" else 3
    triads = [(0, third, 7), (5, 5 + third, 12), (7, 11, 14), (0, third, 7)]
    return np.concatenate([tones(tuple(60 + tonic + step for step in (*triad, triad[0] - 12))) for triad in triads])


@pytest.mark.parametrize(
    ("tonic", "mode", "name"), [(0, "major", "C major"), (6, "major", "F# major"), (9, "minor", "A minor")]
)
def test_key_of_a_cadence(tonic, mode, name):
    assert HarmonyTrack(cadence(tonic, mode), RATE_HZ).key() == name


def test_near_misses_of_the_key_get_the_weights_of_mirex():
    reference = cadence(0, "major")
    assert key_agreement(reference, cadence(0, "major"), RATE_HZ) == 1.0
    assert key_agreement(reference, cadence(7, "major"), RATE_HZ) == 0.5
    assert key_agreement(reference, cadence(9, "minor"), RATE_HZ) == 0.3
    assert key_agreement(reference, cadence(0, "minor"), RATE_HZ) == 0.2
    assert key_agreement(reference, cadence(1, "major"), RATE_HZ) == 0.0
    assert compare_keys("C# minor", None) == 0.0
