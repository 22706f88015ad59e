"""A judge without weights: the evaluation's coherence metrics of each accompaniment against the vocal.

It is the floor that an audio model must beat. Rhythm is the agreement of onsets and, with less weight, of beats;
harmony that of chroma and, with less weight, of keys; overall is the mean of both. The accompaniment is estimated as
the mix without the vocal (:func:`~hafm_lightning.listening.judge.base.without_vocal`): compared with the mix itself,
which holds the vocal and therefore always agrees with it, differences between true and random accompaniments of toy
songs are two to three times as large (docs/listening_judges.md has the numbers).

Weights and scales were set on the toy band, and on other songs than those that the documentation reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hafm_lightning.evaluation.coherence.harmony import HarmonyTrack, compare_chroma, compare_keys
from hafm_lightning.evaluation.coherence.rhythm import RhythmTrack, compare_beats, compare_onsets
from hafm_lightning.files import sha256_of_json
from hafm_lightning.listening.judge.base import (
    TIE_SHARE,
    Answer,
    Failed,
    Presented,
    Samples,
    opinions_of,
    same_sounds,
    without_vocal,
)

SECOND_WEIGHT = 0.25
"""Of beats beside onsets, and of keys beside chroma: coarse measures, which say little about a few seconds."""
SCALES = {"rhythm": 0.4, "harmony": 0.7, "overall": 0.55}
"""Difference of two scores at which the confidence is full: the mean one between true and random pairs."""
VERSION = 1
"""Raised whenever the scores of the same sounds change."""


@dataclass(frozen=True)
class Coherence:
    """Scores of an accompaniment against a vocal, larger is better."""

    rhythm: float
    harmony: float

    @property
    def overall(self) -> float:
        """Mean of both."""
        return (self.rhythm + self.harmony) / 2


@dataclass(frozen=True)
class CoherenceJudge:
    """The judge, and its own source: there is nothing to load.

    Attributes:
        criteria: Of the study.
    """

    criteria: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Over criteria, weights, scales and version."""
        return sha256_of_json(["coherence", VERSION, list(self.criteria), SECOND_WEIGHT, SCALES, TIE_SHARE])

    def load(self, device: torch.device) -> CoherenceJudge:
        """Itself; the metrics run on the CPU."""
        return self

    def judge(self, trials: Sequence[Presented]) -> Iterator[Answer | Failed]:
        """Score both sides of each trial; sounds that come again, in the other order, are scored once."""
        scored = same_sounds(coherence)
        what = {"rhythm": "onsets and beats", "harmony": "chroma and key", "overall": "coherence"}
        for trial in trials:
            first, second = (scored(trial.vocal, mix, trial.rate_hz) for mix in (trial.first, trial.second))
            scores = {name: (getattr(first, name), getattr(second, name), SCALES[name]) for name in self.criteria}
            yield Answer(opinions_of(scores, what))


def coherence(vocal: Samples, mix: Samples, rate_hz: int) -> Coherence:
    """Agreement of the accompaniment in ``mix [L]`` with ``vocal [L]``."""
    band = without_vocal(mix, vocal)
    if not _audible(band, mix):
        return Coherence(0.0, 0.0)
    own, other = (RhythmTrack(sound, rate_hz) for sound in (vocal, band))
    beats = compare_beats(own.beats(), other.beats())["beat_f_measure"]
    sung, played = (HarmonyTrack(sound, rate_hz) for sound in (vocal, band))
    return Coherence(
        rhythm=compare_onsets(own.onsets(), other.onsets()) + SECOND_WEIGHT * beats,
        harmony=compare_chroma(sung, played) + SECOND_WEIGHT * compare_keys(sung.key(), played.key()),
    )


def _audible(band: Samples, mix: Samples) -> bool:
    """Whether more is left than the rounding and the dither of 16-bit files."""
    return float(np.sqrt(np.mean(np.square(band)))) > 1e-3 * float(np.sqrt(np.mean(np.square(mix))))
