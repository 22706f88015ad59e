"""Clicks and tones, and each coherence score of two signals."""

from __future__ import annotations

import numpy as np

from hafm_lightning.evaluation.coherence.harmony import HarmonyTrack, compare_chroma, compare_keys
from hafm_lightning.evaluation.coherence.rhythm import RhythmTrack, compare_beats, compare_onsets

RATE_HZ = 16000


def clicks(times_s: np.ndarray, duration_s: float = 12.0) -> np.ndarray:
    """Short decaying noise bursts at given times."""
    burst = np.random.default_rng(0).standard_normal(800) * np.exp(-np.arange(800) / 150)
    signal = np.zeros(round(duration_s * RATE_HZ) + 800)
    for time_s in times_s:
        at = round(time_s * RATE_HZ)
        signal[at : at + 800] += burst
    return (0.3 * signal[: round(duration_s * RATE_HZ)]).astype(np.float32)


def tones(midi: tuple[int, ...], duration_s: float = 1.0) -> np.ndarray:
    """Sum of sines."""
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    total = sum(np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * time_s) for note in midi)
    return (0.1 * np.asarray(total)).astype(np.float32)


def beat_agreement(reference_mix: np.ndarray, candidate_mix: np.ndarray, rate_hz: int) -> dict[str, float]:
    return compare_beats(RhythmTrack(reference_mix, rate_hz).beats(), RhythmTrack(candidate_mix, rate_hz).beats())


def onset_f1(first: np.ndarray, second: np.ndarray, rate_hz: int) -> float:
    return compare_onsets(RhythmTrack(first, rate_hz).onsets(), RhythmTrack(second, rate_hz).onsets())


def chroma_cosine(vocal: np.ndarray, accompaniment: np.ndarray, rate_hz: int) -> float:
    return compare_chroma(HarmonyTrack(vocal, rate_hz), HarmonyTrack(accompaniment, rate_hz))


def key_agreement(reference_mix: np.ndarray, accompaniment: np.ndarray, rate_hz: int) -> float:
    return compare_keys(HarmonyTrack(reference_mix, rate_hz).key(), HarmonyTrack(accompaniment, rate_hz).key())
