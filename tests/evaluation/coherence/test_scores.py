"""Coherence metrics: answers known from constructed signals, and the ranking of controls on toy band songs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toyband_clips import CLIP_RATE_HZ, ToyClip, other_songs, toy_clips

from hafm_lightning.audio import resample
from hafm_lightning.evaluation.coherence.harmony import (
    HarmonyTrack,
    chroma_cosine,
    compare_keys,
    estimate_key,
    key_agreement,
)
from hafm_lightning.evaluation.coherence.rhythm import (
    RhythmTrack,
    beat_agreement,
    compare_beats,
    compare_onsets,
    onset_f1,
)
from hafm_lightning.evaluation.coherence.scores import (
    COHERENCE_METRICS,
    TOY_METRICS,
    beat_phase,
    coherence_scores,
    toy_truth_scores,
)
from hafm_lightning.evaluation.intervals import paired_difference_interval
from hafm_lightning.tokenizers import spectra
from hafm_lightning.toyband.score import compose

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


# Rhythm


def test_beats_and_onsets_are_where_the_clicks_are():
    times_s = 0.4 + 0.5 * np.arange(23)
    track = RhythmTrack(clicks(times_s), RATE_HZ)
    assert all(np.abs(track.beats() - time_s).min() < 0.04 for time_s in times_s[1:-1])
    onsets = track.onsets()
    assert len(onsets) == len(times_s)
    assert np.abs(onsets - times_s).max() < 0.03


def test_beats_half_a_beat_late_are_wrong_except_to_amlt():
    on = 0.4 + 0.5 * np.arange(23)
    exact = compare_beats(on, on)
    assert (exact.f_measure, exact.cmlt, exact.amlt, exact.found) == (1.0, 1.0, 1.0, True)
    late = compare_beats(on, on + 0.25)
    assert (late.f_measure, late.cmlt) == (0.0, 0.0)
    assert late.amlt > 0.9
    near = compare_beats(on, on + 0.06)
    assert near.f_measure == 1.0
    double = compare_beats(on, np.arange(0.4, 11.5, 0.25))
    assert double.cmlt < 0.1 < 0.9 < double.amlt
    assert beat_agreement(clicks(on), clicks(on), RATE_HZ).f_measure == 1.0


def test_no_beats_score_zero_and_are_counted():
    silence = np.zeros(10 * RATE_HZ, np.float32)
    scores = beat_agreement(clicks(np.arange(0.5, 10, 0.5), 10.0), silence, RATE_HZ)
    assert (scores.f_measure, scores.cmlt, scores.amlt, scores.found) == (0.0, 0.0, 0.0, False)


def test_onset_f_measure_counts_hits_within_50_ms():
    first = np.array([1.0, 2.0, 3.0, 4.0])
    assert compare_onsets(first, first + 0.04) == 1.0
    assert compare_onsets(first, first + 0.06) == 0.0
    # 2 of 4 found by 3 guesses: precision 2/3, recall 1/2.
    assert compare_onsets(first, np.array([1.0, 2.0, 2.5])) == pytest.approx(4 / 7)
    assert compare_onsets(first, np.zeros(0)) == 0.0
    assert onset_f1(clicks(first), clicks(first), RATE_HZ) == 1.0
    assert onset_f1(clicks(first), np.zeros(12 * RATE_HZ, np.float32), RATE_HZ) == 0.0


# Harmony


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


# Everything together


def test_signals_must_be_mono_finite_and_of_one_length():
    sound = tones((60,), 3.0)
    with pytest.raises(ValueError, match="one length"):
        coherence_scores(sound, sound, sound[:-1], RATE_HZ)
    with pytest.raises(ValueError, match="finite mono"):
        coherence_scores(np.stack([sound] * 2), np.stack([sound] * 2), np.stack([sound] * 2), RATE_HZ)
    with pytest.raises(ValueError, match="finite mono"):
        onset_f1(sound, np.full_like(sound, np.nan), RATE_HZ)
    with pytest.raises(ValueError, match="chroma frames"):
        chroma_cosine(sound, sound[:RATE_HZ], RATE_HZ)


def test_beat_phase_of_known_beats():
    truth = compose(4, 10.0)
    beats_s = np.array(truth.beats_s)
    assert beat_phase(beats_s, truth) == pytest.approx(1.0, abs=1e-4)
    assert beat_phase(beats_s + truth.beat_s / 2, truth) == pytest.approx(-1.0, abs=1e-4)
    assert beat_phase(beats_s + truth.beat_s / 4, truth) == pytest.approx(0.0, abs=1e-3)
    assert beat_phase(np.zeros(0), truth) == 0.0


@pytest.fixture(scope="module")
def clips() -> tuple[ToyClip, ...]:
    return toy_clips()


@pytest.fixture(scope="module")
def scores(clips: tuple[ToyClip, ...]) -> dict[str, dict[str, np.ndarray]]:
    """System -> metric -> score of each song."""
    systems = {
        "truth": [clip.accompaniment for clip in clips],
        "delayed": [clip.delayed for clip in clips],
        "transposed": [clip.transposed for clip in clips],
        "random": other_songs(clips),
    }
    table = {}
    for system, candidates in systems.items():
        rows = [
            coherence_scores(clip.vocal, clip.accompaniment, candidate, CLIP_RATE_HZ)
            | toy_truth_scores(candidate, CLIP_RATE_HZ, clip.truth)
            for clip, candidate in zip(clips, candidates, strict=True)
        ]
        table[system] = {metric: np.array([row[metric] for row in rows]) for metric in rows[0]}
    return table


# What each metric should notice beside another song's accompaniment. AMLt forgives half a beat by definition, and the
# chroma of a chord that lasts two beats survives half a beat.
NOTICES = {
    "beat_f_measure": ("delayed",),
    "beat_cmlt": ("delayed",),
    "beat_amlt": (),
    "chroma_cosine": ("transposed", "delayed"),
    "key_score": ("transposed",),
    "onset_f1": ("delayed",),
    "onset_f1_reference": ("delayed",),
    "chord_accuracy": ("transposed",),
    "chord_root_accuracy": ("transposed",),
    "beat_phase": ("delayed",),
}


def test_every_metric_has_a_known_answer():
    assert set(NOTICES) == {*COHERENCE_METRICS, *TOY_METRICS} - {"beats_found"}


@pytest.mark.parametrize("metric", NOTICES)
def test_truth_ranks_above_what_the_metric_should_notice_and_above_random_pairing(scores, metric):
    truth = scores["truth"][metric]
    for control in (*NOTICES[metric], "random"):
        difference = paired_difference_interval(truth, scores[control][metric])
        assert difference.low > 0, (control, difference)


def test_truth_is_nearly_perfect_where_it_can_be(scores):
    truth = scores["truth"]
    for metric in ("beat_f_measure", "beat_cmlt", "beat_amlt", "onset_f1_reference", "beats_found"):
        assert np.all(truth[metric] == 1.0)
    assert truth["chord_accuracy"].mean() > 0.97
    assert truth["beat_phase"].mean() > 0.7
    assert scores["random"]["chord_accuracy"].mean() < 0.25
    assert scores["delayed"]["beat_phase"].mean() < -0.6


def test_loudness_of_the_candidate_is_not_judged(clips):
    clip = clips[0]
    loud = coherence_scores(clip.vocal, clip.accompaniment, clip.accompaniment, CLIP_RATE_HZ)
    quiet = coherence_scores(clip.vocal, clip.accompaniment, 0.01 * clip.accompaniment, CLIP_RATE_HZ)
    assert quiet == pytest.approx(loud, abs=0.02)
    silent = coherence_scores(clip.vocal, clip.accompaniment, 0 * clip.accompaniment, CLIP_RATE_HZ)
    assert silent["chroma_cosine"] == silent["onset_f1"] == silent["key_score"] == 0.0


def test_a_window_of_a_song_is_scored_at_its_place(clips):
    clip = clips[1]
    late = toy_truth_scores(clip.accompaniment[3 * CLIP_RATE_HZ :], CLIP_RATE_HZ, clip.truth, start_s=3.0)
    assert late["chord_accuracy"] > 0.9
    assert late["beat_phase"] > 0.5


def through_a_coarse_vocoder(sound: np.ndarray) -> np.ndarray:
    """80 mel bands at 75 Hz and back by Griffin-Lim: worse than what generations pass through."""
    hop, window = 320, 1920
    signal = torch.nn.functional.interpolate(torch.from_numpy(sound)[None, None], scale_factor=1.5, mode="linear")[0, 0]
    magnitude = spectra.magnitudes(signal[: len(signal) // hop * hop], window, hop)
    mel = spectra.mel_filters(24000, window, 80, 30.0, 12000.0)
    spread = mel / mel.sum(dim=0, keepdim=True).clamp(min=1e-9)
    rebuilt = spectra.griffin_lim((magnitude @ mel.T) @ spread, hop, iterations=8, seed=0).numpy()
    return resample(rebuilt, 24000, CLIP_RATE_HZ)[: len(sound)]


def test_harmony_and_onsets_survive_a_coarse_vocoder(clips):
    """Generations are heard through a vocoder: the effects must stay large enough for twenty songs to show them."""
    rebuilt = [through_a_coarse_vocoder(clip.accompaniment) for clip in clips[:8]]
    pairs = [
        (clip.vocal, sound, rebuilt[index - 1]) for index, (clip, sound) in enumerate(zip(clips, rebuilt, strict=False))
    ]
    for metric in (chroma_cosine, onset_f1):
        own = [metric(vocal, right, CLIP_RATE_HZ) for vocal, right, _ in pairs]
        other = [metric(vocal, wrong, CLIP_RATE_HZ) for vocal, _, wrong in pairs]
        difference = np.array(own) - np.array(other)
        assert difference.mean() > 1.5 * difference.std(), metric
        assert paired_difference_interval(own, other).low > 0.1
