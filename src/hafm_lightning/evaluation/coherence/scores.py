"""All coherence scores of one accompaniment, and those that need a known truth.

A raw value has no scale: read every score beside that of the true accompaniment and that of random pairing. Silence and
noise score the worst value (:mod:`~hafm_lightning.evaluation.coherence.meaning`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.coherence import ANALYSIS_RATE_HZ
from hafm_lightning.evaluation.coherence.harmony import CHROMA_HOP, HarmonyTrack, compare_chroma, compare_keys
from hafm_lightning.evaluation.coherence.meaning import WORST, Meaning, meaning_of
from hafm_lightning.evaluation.coherence.rhythm import BEAT_METRICS, RhythmTrack, Times, compare_beats, compare_onsets
from hafm_lightning.toyband.score import Chord, ToyTruth

TOY_METRICS = ("chord_accuracy", "chord_root_accuracy", "beat_phase")
"""Keys of :func:`toy_truth_scores`; larger is better for each."""

_RHYTHM = (*BEAT_METRICS, "onset_f1", "onset_f1_reference", "beat_phase")
_HARMONY = ("chroma_cosine", "key_score", "chord_accuracy", "chord_root_accuracy")
_SHORTEST_CHORD_S = 0.3


class SongTracks:
    """Vocal and true accompaniment of a clip, both mono ``[L]`` at ``rate_hz``, analysed once for all candidates.

    Raises:
        ValueError: The lengths differ, or a signal is not mono and finite.
    """

    def __init__(self, vocal: npt.NDArray[Any], reference: npt.NDArray[Any], rate_hz: int) -> None:
        if vocal.shape != reference.shape:
            raise ValueError(f"expected mono signals of one length, got {vocal.shape} and {reference.shape}")
        self.vocal, self.rate_hz, self.level = vocal, rate_hz, _level(reference)
        self.beats = RhythmTrack(vocal + reference, rate_hz).beats()
        self.key = HarmonyTrack(vocal + reference, rate_hz).key()
        self.vocal_harmony = HarmonyTrack(vocal, rate_hz)
        self.vocal_onsets, self.onsets = (RhythmTrack(sound, rate_hz).onsets() for sound in (vocal, reference))

    def scores(self, candidate: npt.NDArray[Any]) -> dict[str, float]:
        """How well a candidate accompaniment, mono ``[L]``, fits the vocal.

        The candidate is first brought to the reference's root mean square: loudness is not judged here.

        Returns:
            Metric -> score from 0 to 1, larger is better. Beats, key and ``onset_f1_reference`` compare with the
            original song; ``chroma_cosine`` and ``onset_f1`` compare the accompaniment with the vocal. A candidate
            without harmony (silence, noise) scores 0 in harmony, one without rhythm 0 in rhythm.

        Raises:
            ValueError: The lengths differ, or the candidate is not mono and finite.
        """
        if candidate.shape != self.vocal.shape:
            raise ValueError(f"expected mono signals of one length, got {self.vocal.shape} and {candidate.shape}")
        meaning = meaning_of(candidate, self.rate_hz)
        level = _level(candidate)
        if level > 0:
            candidate = candidate * (self.level / level)
        beats = RhythmTrack(self.vocal + candidate, self.rate_hz).beats()
        onsets = RhythmTrack(candidate, self.rate_hz).onsets()
        harmony = HarmonyTrack(candidate, self.rate_hz)
        scores = {
            **compare_beats(self.beats, beats),
            "chroma_cosine": compare_chroma(self.vocal_harmony, harmony),
            "key_score": compare_keys(self.key, harmony.key()),
            "onset_f1": compare_onsets(self.vocal_onsets, onsets),
            "onset_f1_reference": compare_onsets(self.onsets, onsets),
        }
        return with_meaning(scores, meaning)


def with_meaning(scores: dict[str, float], meaning: Meaning) -> dict[str, float]:
    """The scores, with the worst value for those that mean nothing for such a sound."""
    lost = (() if meaning.harmony else _HARMONY) + (() if meaning.rhythm else _RHYTHM)
    return scores | {name: WORST.get(name, 0.0) for name in scores if name in lost}


def _level(sound: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(sound))))


def toy_truth_scores(
    accompaniment: npt.NDArray[Any], rate_hz: int, truth: ToyTruth, start_s: float = 0.0
) -> dict[str, float]:
    """Scores of an accompaniment, mono ``[L]``, against a toy band song's known chords and beats from ``start_s`` on.

    Returns:
        :data:`TOY_METRICS` -> score. ``chord_accuracy``: share of the sung time in which the triad that fits the
        accompaniment's chroma best is the true chord; ``chord_root_accuracy``: has its root. ``beat_phase``: mean
        cosine of the phase of the tracked beats on the true grid: 1 on the beat, -1 half a beat off, 0 for no relation
        or no beats. Silence and noise score 0 in chords and -1 in phase.
    """
    track = HarmonyTrack(accompaniment, rate_hz)
    end_s = start_s + len(accompaniment) / rate_hz
    times_s = np.arange(len(track.chroma)) * (CHROMA_HOP / ANALYSIS_RATE_HZ) + start_s
    sung_total_s = right_s = right_root_s = 0.0
    for chord in truth.chords:
        # After the last syllable of a phrase only the drums play.
        sung_s = max((note.end_s for note in truth.notes if chord.start_s <= note.start_s < chord.end_s), default=0.0)
        first_s, last_s = max(chord.start_s, start_s), min(chord.end_s, sung_s, end_s)
        if last_s - first_s < _SHORTEST_CHORD_S:
            continue
        sung_total_s += last_s - first_s
        inside = (times_s > first_s + 0.05) & (times_s < last_s - 0.05)
        triad = _best_triad(track.chroma[inside].sum(axis=0))
        if triad is not None:
            right_root_s += (last_s - first_s) * (triad[0] == chord.root)
            right_s += (last_s - first_s) * (triad == (chord.root, chord.quality))
    scores = {
        "chord_accuracy": right_s / sung_total_s if sung_total_s else 0.0,
        "chord_root_accuracy": right_root_s / sung_total_s if sung_total_s else 0.0,
        "beat_phase": beat_phase(RhythmTrack(accompaniment, rate_hz).beats() + start_s, truth),
    }
    return with_meaning(scores, meaning_of(accompaniment, rate_hz))


def beat_phase(beats_s: Times, truth: ToyTruth) -> float:
    """Mean cosine of the phase of ``beats_s`` on a song's true beat grid; 0 without beats."""
    if len(beats_s) == 0:
        return 0.0
    return float(np.cos(2 * np.pi * (beats_s - truth.beats_s[0]) / truth.beat_s).mean())


def _best_triad(chroma: npt.NDArray[np.float64]) -> tuple[int, str] | None:
    """Root and quality of the triad nearest to a chroma ``[12]``; None in silence."""
    if not chroma.any():
        return None
    fits = {}
    for root in range(12):
        for quality in ("major", "minor"):
            tones = Chord(0.0, 0.0, root, quality).pitch_classes
            # The root weighs more: the bass plays it. All triads' templates have the same length.
            fits[root, quality] = float(chroma[list(tones)] @ np.array([1.2, 1.0, 1.0]))
    return max(fits, key=lambda name: fits[name])
