"""Rows that cannot be an accompaniment: the vocal again, silence, noise. A column in which one of them scores well says
what the column rewards. They cost nothing, so a card shows them by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hafm_lightning.evaluation.seeds import seed_of
from hafm_lightning.evaluation.segments import MusicClip
from hafm_lightning.evaluation.systems.base import Outcome, System

QUIET_NOISE_RMS = 0.01
"""Level of the noise where the true accompaniment is silent."""


class VocalAlone(System):
    """The vocal in place of an accompaniment: it has the key, the chords' notes and the onsets of the vocal."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__("vocal_alone")

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """The vocals."""
        return [Outcome(clip.vocal) for clip in clips]


class Silence(System):
    """Nothing, as a failed clip sounds."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__("silence")

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Silence of the clips' lengths."""
        return [Outcome(np.zeros_like(clip.accompaniment)) for clip in clips]


class Noise(System):
    """White Gaussian noise at the level of the true accompaniment; a clip's noise depends on its id and ``seed``."""

    def __init__(self, seed: int) -> None:
        super().__init__("noise", seed)
        self.seed = seed

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Noise of the clips' lengths."""
        outcomes = []
        for clip in clips:
            level = float(np.sqrt(np.mean(np.square(clip.accompaniment)))) or QUIET_NOISE_RMS
            generator = np.random.default_rng(seed_of(self.seed, "noise", clip.clip_id))
            white = generator.standard_normal(len(clip.accompaniment), dtype=np.float32)
            outcomes.append(Outcome(np.float32(level) * white))
        return outcomes


CONTROLS: Mapping[str, Callable[[int], System]] = {"vocal_alone": VocalAlone, "silence": Silence, "noise": Noise}
"""Name -> the row, made from the evaluation's seed, which only the noise needs."""
