"""The quality filter: loudness by an independent meter, each rule, and the measurements."""

import math
from dataclasses import replace

import numpy as np
import pyloudnorm
import pytest
from tiny_corpora import vocal_and_band

from hafm_lightning.preparation.quality.filters import (
    RULES,
    FilterSettings,
    Measurements,
    broken_rules,
    correlation,
    loudness_and_range,
    measure,
)
from hafm_lightning.songs.clips import clip_sound
from hafm_lightning.songs.stems import Window


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000, 96_000])
def test_loudness_equals_an_independent_meter(rate_hz):
    generator = np.random.default_rng(rate_hz)
    samples = generator.normal(0, 0.1, (2, rate_hz * 6)).astype(np.float32)
    samples[:, rate_hz * 3 :] *= 0.01  # a quiet half, which gating removes
    measured, _ = loudness_and_range(samples, rate_hz)
    expected = pyloudnorm.Meter(rate_hz, filter_class="DeMan").integrated_loudness(samples.T.astype(np.float64))
    assert measured == pytest.approx(expected, abs=0.1)


def test_a_1_khz_sine_reads_as_the_standard_says():
    time = np.arange(48_000 * 5) / 48_000
    sine = np.stack([np.sin(2 * np.pi * 997 * time)] * 2).astype(np.float32) * 10 ** (-23 / 20)
    measured, spread = loudness_and_range(sine, 48_000)
    assert measured == pytest.approx(-23.0, abs=0.1)
    assert spread == pytest.approx(0.0, abs=0.1)


def test_loudness_range_of_two_levels_is_their_difference():
    time = np.arange(48_000 * 40) / 48_000
    sine = np.stack([np.sin(2 * np.pi * 997 * time)] * 2) * 10 ** (-20 / 20)
    sine[:, 48_000 * 20 :] *= 10 ** (-10 / 20)  # EBU Tech 3342, test case 1: -20 then -30 dBFS gives 10 LU
    assert loudness_and_range(sine.astype(np.float32), 48_000)[1] == pytest.approx(10.0, abs=1.0)
    assert loudness_and_range(np.zeros((2, 48_000), np.float32), 48_000) == (-math.inf, 0.0)
    assert loudness_and_range(np.zeros((2, 5), np.float32), 48_000) == (-math.inf, 0.0)


def window_of(vocal, band, rate_hz=16_000):
    stereo = [np.stack([part, part]).astype(np.float32) for part in (vocal, band)]
    return Window(0.0, 0, len(vocal), rate_hz, *stereo)


def measured(vocal, band):
    window = window_of(vocal, band)
    return measure(window, clip_sound(window, 16_000, 24_000, False), FilterSettings())


def test_music_passes_and_each_fault_breaks_its_rule():
    vocal, band = vocal_and_band(10.0, seed=3)
    settings = FilterSettings()
    good = measured(vocal, band)
    assert broken_rules(good, settings) == []
    silence = np.zeros_like(vocal)
    pulse = np.where(np.arange(len(vocal)) < 8000, 1.0, 0.0)
    faults = {
        "vocal_activity": (silence, band),
        "instrumental_activity": (vocal, silence),
        "clipping": (np.clip(vocal * 40, -1, 1), band),
        "silence": (vocal * pulse, band * pulse),
        "dc_offset": (vocal, band + 0.3),
        "leakage": (vocal, band + 0.8 * vocal),
        "loudness": (vocal * 0.003, band * 0.003),
        "loudness_range": (vocal * np.linspace(0, 1, len(vocal)) ** 5, band * np.linspace(0, 1, len(vocal)) ** 5),
    }
    assert set(faults) == set(RULES)
    for rule, (bad_vocal, bad_band) in faults.items():
        strict = replace(settings, loudness_range_max_lu=12.0)
        assert rule in broken_rules(measured(bad_vocal, bad_band), strict), rule
    assert broken_rules(good, replace(settings, loudness_range_max_lu=12.0)) == []


def test_a_constant_is_not_singing():
    _, band = vocal_and_band(2.0, seed=3)
    assert measured(np.full(len(band), 0.04, np.float32), band).vocal_activity == 0


def test_null_switches_every_rule_off():
    off = FilterSettings(
        **{
            name: None
            for name in FilterSettings.__dataclass_fields__
            if name.endswith(("_min", "_max", "_lufs", "_lu"))
        }
    )
    worst = Measurements(0.0, 0.0, 1.0, 1.0, 1.0, 1.0, -200.0, 99.0)
    assert broken_rules(worst, off) == []
    assert set(broken_rules(worst, FilterSettings())) == set(RULES)


def test_measurements_are_what_they_say():
    half = np.zeros(32_000, np.float32)
    half[:16_000] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    result = measured(half, np.full_like(half, 0.1))
    assert result.vocal_activity == pytest.approx(0.5)
    assert result.dc_offset == pytest.approx(0.1)
    assert result.silence == pytest.approx(0.5)
    loud = np.zeros(32_000, np.float32)
    loud[:320] = 1.0
    assert measured(loud, half * 0).clipping == pytest.approx(0.01)


def test_correlation_equals_numpy(tmp_path):
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 1, (2, 5000)).astype(np.float32)
    assert correlation(a, b + 0.5 * a) == pytest.approx(abs(np.corrcoef(a, b + 0.5 * a)[0, 1]), abs=1e-6)
    assert correlation(a, np.ones_like(a)) == 0.0


def tone(amplitude, hz=220.0, seconds=10.0, rate_hz=16_000):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def test_stems_whose_float_sum_exceeds_full_scale_are_not_clipped():
    """Multitracks are summed in floats; only the stems are tokenized."""
    loud = measured(tone(0.9), tone(0.9))
    assert loud.clipping == 0
    assert "clipping" not in broken_rules(loud, FilterSettings())
    window = replace(window_of(tone(0.9), tone(0.9)), separated=True)  # here the sum is a file, which was clipped
    assert measure(window, clip_sound(window, 16_000, 24_000, False), FilterSettings()).clipping > 0.1


@pytest.mark.parametrize(("below_db", "counts"), [(6, True), (15, True), (26, False), (35, False)])
def test_what_a_separator_leaves_under_loud_music_is_no_singing(below_db, counts):
    generator = np.random.default_rng(0)
    band = (0.25 * generator.standard_normal(160_000)).astype(np.float32)  # -12 dBFS
    residue = (band.std() * 10 ** (-below_db / 20) * generator.standard_normal(160_000)).astype(np.float32)
    result = measured(residue, band)
    assert result.vocal_activity == pytest.approx(float(counts), abs=0.02)
    assert result.vocal_bleed == pytest.approx(0.0 if counts or below_db > 33 else 1.0, abs=0.02)
    window = window_of(residue, band)
    absolute = replace(FilterSettings(), gate_below_mixture_db=None)
    before = measure(window, clip_sound(window, 16_000, 24_000, False), absolute)
    assert before.vocal_activity == pytest.approx(float(below_db < 33), abs=0.02)


def test_soft_singing_between_loud_choruses_is_singing():
    vocal, band = tone(0.02), tone(0.01, 90.0)
    vocal[80_000:] *= 20
    band[80_000:] *= 40
    assert measured(vocal, band).vocal_activity > 0.85  # all but the second beside the chorus
    assert measured(vocal * 0, band).vocal_activity == 0


def test_residue_of_the_voice_is_no_accompaniment():
    voice = tone(0.4)
    assert measured(voice, 0.02 * voice).instrumental_activity == 0
    assert measured(voice, tone(0.1, 90.0)).instrumental_activity == 1


def test_the_low_end_tells_a_swapped_pair():
    vocal, band = vocal_and_band(10.0, seed=3)
    band = band + tone(0.1, 55.0)
    assert measured(vocal, band).low_end_db < -20
    assert measured(band, vocal).low_end_db > 20
    silence = np.zeros_like(vocal)
    assert measured(silence, silence).low_end_db == 0


def test_a_stem_whose_channels_cancel_is_measured_as_it_is_tokenized():
    vocal, band = vocal_and_band(10.0, seed=3)
    stems = np.stack([vocal, -vocal]), np.stack([band, band])
    window = Window.of(0.0, 0, len(vocal), 16_000, stems, False)
    sound = clip_sound(window, 16_000, 24_000, False)
    assert np.array_equal(sound.vocal, vocal)
    result, expected = measure(window, sound, FilterSettings()), measured(vocal, band)
    assert result.cancelled == 1
    assert replace(result, cancelled=0.0) == expected
    assert not Window.of(0.0, 0, len(vocal), 16_000, (np.stack([vocal, vocal]), stems[1]), False).cancelled
