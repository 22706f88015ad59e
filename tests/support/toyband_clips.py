"""Toy band clips with what a listener should notice: delayed, transposed, another song's. Shared by two test files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hafm_lightning.audio import resample
from hafm_lightning.toyband.band import play
from hafm_lightning.toyband.corpus import RATE_HZ, song_seed, synthesise_song
from hafm_lightning.toyband.score import ToyTruth

CLIP_RATE_HZ = 16000
CLIP_S = 10.0


@dataclass(frozen=True)
class ToyClip:
    """Mono float32 signals ``[L]`` at :data:`CLIP_RATE_HZ`."""

    truth: ToyTruth
    vocal: np.ndarray
    accompaniment: np.ndarray
    delayed: np.ndarray
    """By half a beat."""
    transposed: np.ndarray
    """Up a semitone: the same players, rhythm and drums."""


def mono(samples: np.ndarray) -> np.ndarray:
    return resample(samples.mean(axis=0), RATE_HZ, CLIP_RATE_HZ)


@lru_cache(maxsize=1)
def toy_clips(songs: int = 11) -> tuple[ToyClip, ...]:
    clips = []
    for number in range(songs):
        song = synthesise_song(song_seed(0, "test", number), CLIP_S)
        truth = song.truth
        higher = replace(truth, chords=tuple(replace(c, root=(c.root + 1) % 12) for c in truth.chords))
        accompaniment = mono(song.accompaniment.samples)
        late = round(truth.beat_s / 2 * CLIP_RATE_HZ)
        clips.append(
            ToyClip(
                truth=truth,
                vocal=mono(song.stems["vocals"].samples),
                accompaniment=accompaniment,
                delayed=np.pad(accompaniment, (late, 0))[: len(accompaniment)],
                transposed=mono(np.sum(list(play(higher, RATE_HZ).values()), axis=0)),
            )
        )
    return tuple(clips)


def other_songs(clips: tuple[ToyClip, ...]) -> list[np.ndarray]:
    """Each clip's random pairing: the accompaniment of the clip three further on."""
    return [clips[(index + 3) % len(clips)].accompaniment for index in range(len(clips))]
