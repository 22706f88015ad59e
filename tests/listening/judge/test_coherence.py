"""The judge without weights: it recovers the accompaniment, prefers what fits, and follows no order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coherence_sounds import RATE_HZ, clicks, tones

from hafm_lightning.listening.judge.base import Answer, Presented, preference, without_vocal
from hafm_lightning.listening.judge.coherence import SCALES, CoherenceJudge, coherence
from hafm_lightning.listening.study import CRITERIA
from hafm_lightning.listening.trials.sounds import Samples, alike, mixed, rounded

DURATION_S = 6.0
BEATS_S = np.arange(0.25, DURATION_S, 0.5)
OFF_BEATS_S = np.arange(0.43, DURATION_S, 0.61)
C_MAJOR, F_SHARP_MAJOR = (60, 64, 67), (54, 58, 61)


def playing(chord: tuple[int, ...], times_s: np.ndarray) -> Samples:
    return (tones(chord, DURATION_S) + clicks(times_s, DURATION_S)).astype(np.float32)


def as_in_a_study(vocal: Samples, band: Samples | None = None) -> Samples:
    """A file of a study: mixed, filtered, loudness-matched and rounded to 16 bits."""
    sound = vocal if band is None else mixed(vocal, band, RATE_HZ)
    return rounded(alike(sound, RATE_HZ, RATE_HZ, -23.0), 0.0, f"{band is None}")


@pytest.fixture(scope="module")
def vocal() -> Samples:
    return playing((72, 76), BEATS_S)


def judged(vocal: Samples, first: Samples, second: Samples, criteria: tuple[str, ...] = CRITERIA) -> Answer:
    trial = Presented(as_in_a_study(vocal), first, second, RATE_HZ)
    (answer,) = CoherenceJudge(criteria).load(torch.device("cpu")).judge([trial])
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.parametrize("level", [0.02, 0.3, 4.0])
def test_the_accompaniment_comes_out_of_the_mix(level: float) -> None:
    generator = np.random.default_rng(0)
    vocal, band = (generator.standard_normal(6 * RATE_HZ).astype(np.float32) for _ in range(2))
    left = without_vocal(as_in_a_study(0.1 * vocal, level * band), as_in_a_study(0.1 * vocal))
    wanted = as_in_a_study(band)
    assert np.corrcoef(left, wanted)[0, 1] > 0.999
    assert abs(np.corrcoef(left, as_in_a_study(vocal))[0, 1]) < 0.02


def test_without_a_vocal_nothing_is_taken_away() -> None:
    mix = np.ones(100, np.float32)
    np.testing.assert_array_equal(without_vocal(mix, np.zeros(100, np.float32)), mix)


def test_each_criterion_prefers_what_fits(vocal: Samples) -> None:
    in_time = as_in_a_study(vocal, playing(F_SHARP_MAJOR, BEATS_S))
    in_tune = as_in_a_study(vocal, playing(C_MAJOR, OFF_BEATS_S))
    both = as_in_a_study(vocal, playing(C_MAJOR, BEATS_S))
    neither = as_in_a_study(vocal, playing(F_SHARP_MAJOR, OFF_BEATS_S))

    def choices(first: Samples, second: Samples) -> dict[str, str]:
        return {name: opinion.choice for name, opinion in judged(vocal, first, second).opinions.items()}

    assert choices(in_time, in_tune) | {"overall": ""} == {"rhythm": "first", "harmony": "second", "overall": ""}
    assert choices(both, neither) == dict.fromkeys(CRITERIA, "first")
    assert choices(neither, both) == dict.fromkeys(CRITERIA, "second")


def test_both_orders_agree_and_each_sound_is_analysed_once(vocal: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = "hafm_lightning.listening.judge.coherence.coherence"
    monkeypatch.setattr(module, lambda *sounds: (calls.append(1), coherence(*sounds))[1])
    a, b = (as_in_a_study(vocal, playing(chord, BEATS_S)) for chord in (C_MAJOR, F_SHARP_MAJOR))
    own = as_in_a_study(vocal)
    trials = [Presented(own, a, b, RATE_HZ), Presented(own, b, a, RATE_HZ)]
    one, other = (answer for answer in CoherenceJudge(CRITERIA).judge(trials) if isinstance(answer, Answer))
    swapped = {"first": "second", "second": "first", "tie": "tie"}
    for criterion in CRITERIA:
        assert one.opinions[criterion].choice == swapped[other.opinions[criterion].choice]
        assert one.opinions[criterion].confidence == other.opinions[criterion].confidence
    assert len(calls) == 2


def test_the_vocal_alone_loses_and_equal_sounds_tie(vocal: Samples) -> None:
    band, alone = as_in_a_study(vocal, playing(C_MAJOR, BEATS_S)), as_in_a_study(vocal)
    silence = judged(vocal, alone, band).opinions
    assert {opinion.choice for opinion in silence.values()} == {"second"}
    assert {(o.choice, o.confidence) for o in judged(vocal, band, band).opinions.values()} == {("tie", 1.0)}


def test_criteria_of_the_study_alone_are_answered(vocal: Samples) -> None:
    a, b = (as_in_a_study(vocal, playing(chord, BEATS_S)) for chord in (C_MAJOR, F_SHARP_MAJOR))
    assert list(judged(vocal, a, b, ("harmony",)).opinions) == ["harmony"]
    identities = {CoherenceJudge(criteria).identity for criteria in (CRITERIA, ("harmony",))}
    assert len(identities) == 2
    assert set(SCALES) == set(CRITERIA)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0.0, ("tie", 1.0)),
        (-0.004, ("tie", 1.0)),
        (0.25, ("first", 3.0)),
        (-0.25, ("second", 3.0)),
        (0.5, ("first", 5.0)),
        (-9, ("second", 5)),
    ],
)
def test_the_confidence_grows_with_the_difference(difference: float, expected: tuple[str, float]) -> None:
    assert preference(difference, 0.5) == expected
