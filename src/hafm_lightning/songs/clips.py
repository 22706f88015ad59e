"""Clips: their positions in a song, and the waveforms that are tokenized.

Choices:

* Starts are on a grid of 0.04 s, on which the frames of every stream begin at whole samples.
* A long rest at a song's end gives one more clip, which ends with the song and overlaps the clip before: FMA's 30 s
  excerpts decode to 29.98 s and give three clips, not two.
* A clip is resampled together with a little context, so that it has no edges in the middle of a song.
* Noise of sigma 0.01 (full scale is 1) is added to the vocal at the semantic tokenizer's rate, so that its strength is
  the same for all files. It hides the residue of separation. Source: HAFM (arXiv 2604.09054), section 3.1.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from hafm_lightning.audio import Samples, resample
from hafm_lightning.songs.stems import Window
from hafm_lightning.tokens import CLIP_DURATION_S, FRAME_GRID_S

MARGIN_S = FRAME_GRID_S  # context on each side of a clip for resampling, in seconds
_GRID_HZ = round(1 / FRAME_GRID_S)


@dataclass(frozen=True)
class ClipSettings:
    """Positions of the clips in a song.

    Attributes:
        duration_s: Length of a clip in seconds, a multiple of 0.04.
        hop_s: Distance of the starts of two clips, in seconds; clips overlap if it is less than the duration.
        tail_s: If at least this many seconds are left at a song's end, one more clip ends with the song.
    """

    duration_s: float = CLIP_DURATION_S
    hop_s: float = CLIP_DURATION_S
    tail_s: float = 2.0

    def __post_init__(self) -> None:
        for name, value in (("duration_s", self.duration_s), ("hop_s", self.hop_s)):
            if not value > 0 or abs(value * _GRID_HZ - round(value * _GRID_HZ)) > 1e-6:
                raise ValueError(f"{name} is {value}, must be a positive multiple of {FRAME_GRID_S} s")
        if not self.tail_s > 0:
            raise ValueError(f"tail_s is {self.tail_s}, must be positive (use a large value to cut no tails)")


def clip_starts(song_duration_s: float, settings: ClipSettings) -> list[float]:
    """Starts of a song's clips, ascending, in seconds; empty if the song is shorter than a clip."""
    last = math.floor((song_duration_s - settings.duration_s) * _GRID_HZ + 1e-6)  # in steps of the grid
    if last < 0:
        return []
    hop = round(settings.hop_s * _GRID_HZ)
    steps = list(range(0, last + 1, hop))
    if last - steps[-1] >= settings.tail_s * _GRID_HZ:
        steps.append(last)
    return [step / _GRID_HZ for step in steps]


@dataclass(frozen=True)
class ClipSound:
    """The waveforms of one clip that are tokenized: mono float32 ``[L]``, without noise."""

    vocal: Samples  # at the semantic tokenizer's rate
    instrumental: Samples  # at the semantic tokenizer's rate
    instrumental_acoustic: Samples  # at the acoustic tokenizer's rate
    vocal_acoustic: Samples | None  # at the acoustic tokenizer's rate, or None if it is not needed


def clip_sound(window: Window, semantic_hz: int, acoustic_hz: int, vocal_acoustic: bool) -> ClipSound:
    """Mono, resampled, exactly ``duration * rate`` samples each."""
    vocal = window.vocal.mean(axis=0, dtype=np.float32)
    instrumental = window.instrumental.mean(axis=0, dtype=np.float32)
    return ClipSound(
        vocal=_at_rate(window, vocal, semantic_hz),
        instrumental=_at_rate(window, instrumental, semantic_hz),
        instrumental_acoustic=_at_rate(window, instrumental, acoustic_hz),
        vocal_acoustic=_at_rate(window, vocal, acoustic_hz) if vocal_acoustic else None,
    )


def _at_rate(window: Window, mono: Samples, rate_hz: int) -> Samples:
    length = round(window.length / window.rate_hz * rate_hz)
    before = round(window.before / window.rate_hz * rate_hz)
    converted = resample(mono, window.rate_hz, rate_hz)[before : before + length]
    # At a song's end, a rate off the grid may give one sample less.
    return np.pad(converted, (0, length - len(converted))) if len(converted) < length else converted


def with_noise(vocal: Samples, clip: str, sigma: float, seed: int) -> Samples:
    """``vocal [L]`` with Gaussian noise that depends on the clip's id and the seed alone."""
    if not sigma:
        return vocal
    digest = hashlib.sha256(f"{seed}:{clip}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    return vocal + np.float32(sigma) * generator.standard_normal(len(vocal), dtype=np.float32)
