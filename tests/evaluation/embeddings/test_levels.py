"""Levels of clips: FAD compares systems at one loudness, and Google's framing divides by the peak as Google does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toyband_clips import CLIP_RATE_HZ, toy_clips

from hafm_lightning.audio import Audio, loudness_lufs
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding
from hafm_lightning.evaluation.embeddings.base import at_level
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding


def fad(embedding, first: list[np.ndarray], second: list[np.ndarray]) -> float:
    sets = [GaussianStatistics.from_rows(embedding.rows(sounds)) for sounds in (first, second)]
    return frechet_distance(*sets)


def test_softer_music_is_the_same_music() -> None:
    """The same clips 6 dB softer were .352 away in logmel, further than other songs."""
    sounds = [clip.accompaniment for clip in toy_clips()]
    softer = [0.5 * sound for sound in sounds]
    halves = (sounds[:6], sounds[5:])
    recorded, levelled = (load_embedding(EmbeddingSource(level=level)) for level in ("recorded", None))
    assert fad(recorded, sounds, softer) > fad(recorded, *halves)
    assert fad(levelled, sounds, softer) < 0.01 * fad(levelled, *halves)
    mixed = [sound * gain for sound, gain in zip(sounds, np.geomspace(0.05, 2, len(sounds)), strict=True)]
    assert fad(levelled, sounds, mixed) < 0.05 * fad(levelled, *halves)


def test_levels_are_what_they_say() -> None:
    sound = torch.from_numpy(toy_clips()[0].accompaniment) * 0.3
    loud = at_level(sound, CLIP_RATE_HZ, "loudness").numpy()
    assert loudness_lufs(Audio(loud[None], CLIP_RATE_HZ)) == pytest.approx(-20, abs=0.05)
    peak = at_level(sound, CLIP_RATE_HZ, "peak")
    assert float(peak.abs().max()) == pytest.approx(1.0)
    quiet = sound / sound.abs().max() * 0.02
    assert float(at_level(quiet, CLIP_RATE_HZ, "peak").abs().max()) == pytest.approx(0.2)  # divided by 0.1
    silence = torch.zeros(16000)
    for level in ("loudness", "peak", "recorded"):
        torch.testing.assert_close(at_level(silence, 16000, level), silence)


def test_the_google_framing_divides_by_the_peak() -> None:
    sound = toy_clips()[0].accompaniment
    google = LogMelEmbedding(framing="google")
    reference = google.rows(sound / np.abs(sound).max())
    np.testing.assert_allclose(google.rows(0.5 * sound / np.abs(sound).max()), reference, atol=1e-5)
    assert google.provenance()["level"] == "divided by max(0.1, peak)"


def test_a_level_is_part_of_the_identity_and_of_the_record() -> None:
    recorded, levelled = (load_embedding(EmbeddingSource(level=level)) for level in ("recorded", "loudness"))
    assert recorded.identity == LogMelEmbedding().identity != levelled.identity
    assert load_embedding(EmbeddingSource()).identity == levelled.identity
    assert levelled.provenance()["level"] == "-20 LUFS"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (EmbeddingSource(level="rms"), "unknown level 'rms'"),
        (EmbeddingSource(framing="google", level="loudness"), "divides by the peak"),
    ],
)
def test_levels_that_are_not_known_or_do_not_fit_are_refused(source: EmbeddingSource, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_embedding(source)
