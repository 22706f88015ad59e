"""All coherence scores of one accompaniment, and those that need a known truth.

A raw value has no scale: read every score beside that of the true accompaniment and that of random pairing.
The definitions are in :mod:`~hafm_lightning.evaluation.coherence.rhythm`,
:mod:`~hafm_lightning.evaluation.coherence.harmony` and, for whole sets of clips,
:mod:`~hafm_lightning.evaluation.distances.adherence`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.coherence.harmony import HarmonyTrack, compare_chroma, compare_keys
from hafm_lightning.evaluation.coherence.rhythm import RhythmTrack, Times, compare_beats, compare_onsets
from hafm_lightning.toyband.score import Chord, ToyTruth

COHERENCE_METRICS = (
    "beat_f_measure",
    "beat_cmlt",
    "beat_amlt",
    "beats_found",
    "chroma_cosine",
    "key_score",
    "onset_f1",
    "onset_f1_reference",
)
"""Keys of :func:`coherence_scores`; larger is better for each."""
TOY_METRICS = ("chord_accuracy", "chord_root_accuracy", "beat_phase")
"""Keys of :func:`toy_truth_scores`; larger is better for each."""

_SHORTEST_CHORD_S = 0.3


def coherence_scores(
    vocal: npt.NDArray[Any], reference: npt.NDArray[Any], candidate: npt.NDArray[Any], rate_hz: int
) -> dict[str, float]:
    """How well a candidate accompaniment fits a vocal.

    The candidate is first brought to the reference's root mean square: how loud it is, is not judged here.

    Args:
        vocal: Mono ``[L]``.
        reference: The true accompaniment, mono ``[L]``.
        candidate: The accompaniment to judge, mono ``[L]``.
        rate_hz: Sample rate of all three.

    Returns:
        :data:`COHERENCE_METRICS` -> score from 0 to 1. Beats, key and ``onset_f1_reference`` compare with the original
        song; ``chroma_cosine`` and ``onset_f1`` compare the accompaniment with the vocal and need no original.

    Raises:
        ValueError: The lengths differ, or a signal is not mono and finite.
    """
    if not vocal.shape == reference.shape == candidate.shape:
        raise ValueError(
            f"expected three mono signals of one length, got {vocal.shape}, {reference.shape} and {candidate.shape}"
        )
    reference_level, candidate_level = (float(np.sqrt(np.mean(np.square(x)))) for x in (reference, candidate))
    if candidate_level > 0:
        candidate = candidate * (reference_level / candidate_level)
    beats = compare_beats(
        RhythmTrack(vocal + reference, rate_hz).beats(), RhythmTrack(vocal + candidate, rate_hz).beats()
    )
    candidate_onsets = RhythmTrack(candidate, rate_hz).onsets()
    candidate_harmony = HarmonyTrack(candidate, rate_hz)
    return {
        "beat_f_measure": beats.f_measure,
        "beat_cmlt": beats.cmlt,
        "beat_amlt": beats.amlt,
        "beats_found": float(beats.found),
        "chroma_cosine": compare_chroma(HarmonyTrack(vocal, rate_hz), candidate_harmony),
        "key_score": compare_keys(HarmonyTrack(vocal + reference, rate_hz).key(), candidate_harmony.key()),
        "onset_f1": compare_onsets(RhythmTrack(vocal, rate_hz).onsets(), candidate_onsets),
        "onset_f1_reference": compare_onsets(RhythmTrack(reference, rate_hz).onsets(), candidate_onsets),
    }


def toy_truth_scores(
    accompaniment: npt.NDArray[Any], rate_hz: int, truth: ToyTruth, start_s: float = 0.0
) -> dict[str, float]:
    """An accompaniment of a toy band song against what is known about the song.

    Args:
        accompaniment: Mono ``[L]``.
        rate_hz: Its sample rate.
        truth: The song's truth.
        start_s: Where in the song the accompaniment starts.

    Returns:
        :data:`TOY_METRICS` -> score. ``chord_accuracy``: share of the sung time in which the triad that fits the
        accompaniment's chroma best is the true chord; ``chord_root_accuracy``: has its root. ``beat_phase``: mean
        cosine of the phase of the tracked beats on the true grid: 1 on the beat, -1 half a beat off, 0 for no relation
        or no beats.
    """
    track = HarmonyTrack(accompaniment, rate_hz)
    end_s = start_s + len(accompaniment) / rate_hz
    times_s = track.times_s() + start_s
    heard_s = right_s = right_root_s = 0.0
    for chord in truth.chords:
        # After the last syllable of a phrase only the drums play.
        sung_s = max((note.end_s for note in truth.notes if chord.start_s <= note.start_s < chord.end_s), default=0.0)
        first_s, last_s = max(chord.start_s, start_s), min(chord.end_s, sung_s, end_s)
        if last_s - first_s < _SHORTEST_CHORD_S:
            continue
        heard_s += last_s - first_s
        inside = (times_s > first_s + 0.05) & (times_s < last_s - 0.05)
        found = _best_triad(track.chroma[inside].sum(axis=0))
        if found is not None:
            right_root_s += (last_s - first_s) * (found[0] == chord.root)
            right_s += (last_s - first_s) * (found == (chord.root, chord.quality))
    return {
        "chord_accuracy": right_s / heard_s if heard_s else 0.0,
        "chord_root_accuracy": right_root_s / heard_s if heard_s else 0.0,
        "beat_phase": beat_phase(RhythmTrack(accompaniment, rate_hz).beats() + start_s, truth),
    }


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
