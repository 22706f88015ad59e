"""Metrics that know nothing, planted in the evaluation: the card has to call each of them uninformative.

Songs and codec are real (the toy band), and so are beats, chroma and APA of the last test, which are informative.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from toyband_clips import CLIP_RATE_HZ, CLIP_S, toy_clips

from hafm_lightning.audio import Audio
from hafm_lightning.evaluation.card.card import Column, Row
from hafm_lightning.evaluation.card.checks import judge
from hafm_lightning.evaluation.coherence import scores
from hafm_lightning.evaluation.coherence.harmony import HarmonyTrack
from hafm_lightning.evaluation.coherence.rhythm import RhythmTrack
from hafm_lightning.evaluation.coherence.scores import SongTracks
from hafm_lightning.evaluation.contrasts import Contrasts
from hafm_lightning.evaluation.distances.adherence import adherence_mixes
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding
from hafm_lightning.evaluation.protocol.set_scores import Reference, apa_score, fad_score

SONGS = 11
ROWS_A_CLIP = 10


def generator_of(sound: np.ndarray) -> np.random.Generator:
    """Random numbers that depend on the sound alone: equal sounds get equal answers."""
    return np.random.default_rng(int(hashlib.sha256(np.ascontiguousarray(sound).tobytes()).hexdigest()[:12], 16))


def recoded(sound: np.ndarray) -> np.ndarray:
    """As a good codec leaves it: the same music, other samples."""
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    return sound + np.float32(0.01 * sound.std()) * noise


def candidates() -> dict[str, list[np.ndarray]]:
    clips = toy_clips(SONGS)
    true = [clip.accompaniment for clip in clips]
    generator = np.random.default_rng(5)
    return {
        "ground_truth": true,
        "codec_8": [recoded(sound) for sound in true],
        "random": [true[(index + 3) % SONGS] for index in range(SONGS)],
        "noise": [(sound.std() * generator.standard_normal(len(sound))).astype(np.float32) for sound in true],
    }


def verdicts(columns: list[Column], contrasts: Contrasts) -> dict[str, bool | None]:
    rows = [Row(name, name, SONGS, 0, {}, {}, {}) for name in candidates()]
    return {column.key: column.informative for column in judge(columns, rows, contrasts).columns}


def names() -> list[str]:
    return [f"song {index}" for index in range(SONGS)]


def coherence() -> Contrasts:
    tracks = [SongTracks(clip.vocal, clip.accompaniment, CLIP_RATE_HZ) for clip in toy_clips(SONGS)]
    found = {
        name: [track.scores(sound) for track, sound in zip(tracks, sounds, strict=True)]
        for name, sounds in candidates().items()
    }
    keys = found["random"][0]
    clips = {key: {name: np.array([it[key] for it in of]) for name, of in found.items()} for key in keys}
    return Contrasts(names(), clips)


def sets(rows_of: Callable[[np.ndarray], np.ndarray]) -> Contrasts:
    """FAD and APA of an embedding; the swapped pairs are other ones than the row of random pairing plays."""
    sounds = {name: [rows_of(it) for it in of] for name, of in candidates().items()}
    true = np.concatenate(sounds["ground_truth"])
    reference = Reference("true", GaussianStatistics.from_rows(true), true)
    clips = toy_clips(SONGS)

    def mixes(of: list[np.ndarray]) -> list[np.ndarray]:
        pairs = zip(clips, of, strict=True)
        windows = [
            adherence_mixes(Audio(clip.vocal[None], CLIP_RATE_HZ), Audio(sound[None], CLIP_RATE_HZ))
            for clip, sound in pairs
        ]
        return [np.concatenate([rows_of(it) for it in of_clip]) for of_clip in windows]

    everything = {name: mixes(of) for name, of in candidates().items()}
    swapped = mixes([clips[(index + 5) % SONGS].accompaniment for index in range(SONGS)])
    return Contrasts(
        names(),
        sets={
            "fad_planted": {name: fad_score(rows, reference) for name, rows in sounds.items()},
            "apa_planted": {
                name: apa_score(rows, everything["ground_truth"], swapped) for name, rows in everything.items()
            },
        },
    )


def column(key: str) -> Column:
    return Column(key, key, "lower" if key.startswith("fad") else "higher", "")


def test_a_tracker_of_random_beats_is_uninformative(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gave the ground truth F 1.00, CMLt 1.00 and AMLt 1.00, and the card called the ground truth best."""

    def beats(self: RhythmTrack) -> np.ndarray:
        draw = generator_of(self.strength)
        return np.arange(draw.uniform(0, 0.5), CLIP_S, draw.uniform(0.3, 0.7))

    monkeypatch.setattr(RhythmTrack, "beats", beats)
    contrasts = coherence()
    keys = ["beat_f_measure", "beat_cmlt", "beat_amlt"]
    assert all(contrasts.clips[key]["ground_truth"].min() == 1.0 for key in keys)
    assert verdicts([column(key) for key in keys], contrasts) == dict.fromkeys(keys, False)


def test_random_onsets_keys_and_chroma_are_uninformative(monkeypatch: pytest.MonkeyPatch) -> None:
    def onsets(self: RhythmTrack) -> np.ndarray:
        return np.sort(generator_of(self.strength).uniform(0, CLIP_S, 30))

    def key(self: HarmonyTrack) -> str:
        return f"{'CDEFGAB'[generator_of(self.chroma).integers(7)]} major"

    def chroma(vocal: HarmonyTrack, accompaniment: HarmonyTrack) -> float:
        return float(generator_of(accompaniment.chroma).uniform())

    monkeypatch.setattr(RhythmTrack, "onsets", onsets)
    monkeypatch.setattr(HarmonyTrack, "key", key)
    monkeypatch.setattr(scores, "compare_chroma", chroma)
    keys = ["onset_f1", "onset_f1_reference", "key_score", "chroma_cosine"]
    assert verdicts([column(key) for key in keys], coherence()) == dict.fromkeys(keys, False)


def test_noise_as_an_embedding_is_uninformative() -> None:
    """It gave the ground truth APA 1.00."""

    def rows(sound: np.ndarray) -> np.ndarray:
        return generator_of(sound).standard_normal((ROWS_A_CLIP, 8))

    contrasts = sets(rows)
    everything = list(range(SONGS))
    assert contrasts.sets["apa_planted"]["ground_truth"](everything) == pytest.approx(1.0)
    found = verdicts([column("apa_planted"), column("fad_planted")], contrasts)
    assert found == {"apa_planted": False, "fad_planted": False}


def test_a_constant_is_uninformative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "compare_chroma", lambda *_: 0.5)
    assert verdicts([column("chroma_cosine")], coherence()) == {"chroma_cosine": False}

    def rows(sound: np.ndarray) -> np.ndarray:
        return np.ones((ROWS_A_CLIP, 4))

    found = verdicts([column("apa_planted"), column("fad_planted")], sets(rows))
    assert found == {"apa_planted": False, "fad_planted": False}


def test_real_metrics_are_informative() -> None:
    keys = ["beat_f_measure", "chroma_cosine", "onset_f1", "onset_f1_reference", "key_score"]
    assert verdicts([column(key) for key in keys], coherence()) == dict.fromkeys(keys, True)
    embedding: Embedding = LogMelEmbedding()
    found = verdicts([column("apa_planted"), column("fad_planted")], sets(lambda sound: embedding.rows(sound)))
    assert found == {"apa_planted": True, "fad_planted": True}
