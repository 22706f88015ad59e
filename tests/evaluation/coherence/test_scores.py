"""Coherence metrics: answers known from constructed signals, and the ranking of controls on toy band songs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coherence_sounds import RATE_HZ, chroma_cosine, onset_f1, tones
from toyband_clips import CLIP_RATE_HZ, ToyClip, other_songs, toy_clips

from hafm_lightning.audio import resample
from hafm_lightning.evaluation.coherence.scores import TOY_METRICS, SongTracks, beat_phase, toy_truth_scores
from hafm_lightning.evaluation.intervals import paired_difference_interval
from hafm_lightning.tokenizers import spectra
from hafm_lightning.toyband.score import compose


def test_signals_must_be_mono_finite_and_of_one_length():
    sound = tones((60,), 3.0)
    with pytest.raises(ValueError, match="one length"):
        SongTracks(sound, sound, RATE_HZ).scores(sound[:-1])
    with pytest.raises(ValueError, match="finite mono"):
        SongTracks(np.stack([sound] * 2), np.stack([sound] * 2), RATE_HZ).scores(np.stack([sound] * 2))
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
            SongTracks(clip.vocal, clip.accompaniment, CLIP_RATE_HZ).scores(candidate)
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


def test_every_metric_has_a_known_answer(scores):
    assert set(NOTICES) == set(scores["truth"]) - {"beats_found"}
    assert set(TOY_METRICS) < set(NOTICES)


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
    loud = SongTracks(clip.vocal, clip.accompaniment, CLIP_RATE_HZ).scores(clip.accompaniment)
    quiet = SongTracks(clip.vocal, clip.accompaniment, CLIP_RATE_HZ).scores(0.01 * clip.accompaniment)
    assert quiet == pytest.approx(loud, abs=0.02)
    silent = SongTracks(clip.vocal, clip.accompaniment, CLIP_RATE_HZ).scores(0 * clip.accompaniment)
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
