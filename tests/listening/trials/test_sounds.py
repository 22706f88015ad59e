"""Level, band, edges and rounding of a trial's sounds, measured by other means than those that set them."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
from scipy.signal import resample_poly, welch

from hafm_lightning.listening.trials.sounds import alike, loudness_of, mixed, peak_of, rounded

RATE_HZ = 24000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def lufs(samples: np.ndarray, rate_hz: int = RATE_HZ) -> float:
    block = min(0.4, len(samples) / rate_hz)
    return float(pyloudnorm.Meter(rate_hz, block_size=block).integrated_loudness(samples.astype(np.float64)))


@pytest.mark.parametrize("seconds", [0.1, 0.39, 0.4, 3.0, 10.0])
@pytest.mark.parametrize("gain_db", [-200.0, -80.0, -40.0, 0.0, 40.0])
def test_every_sound_that_is_not_silent_gets_the_studys_loudness(seconds: float, gain_db: float) -> None:
    sound = alike((noise(seconds) * 10 ** (gain_db / 20)).astype(np.float32), RATE_HZ, RATE_HZ, -23.0)
    assert lufs(sound) == pytest.approx(-23.0, abs=0.02)


def test_sound_below_the_gate_is_measured_as_it_would_be_above_it() -> None:
    sound = noise(3.0)
    assert loudness_of(sound, RATE_HZ) == pytest.approx(lufs(sound), abs=1e-9)
    soft = (sound * 1e-6).astype(np.float32)
    assert lufs(soft) == -math.inf
    assert loudness_of(soft, RATE_HZ) == pytest.approx(lufs(sound) - 120, abs=0.01)
    assert loudness_of(np.zeros(9000, np.float32), RATE_HZ) == -math.inf


def test_uneven_sound_gets_it_too() -> None:
    """A loud second in five of near silence: the gates leave most of it out."""
    sound = noise(5.0)
    sound[RATE_HZ:] *= 1e-3
    assert lufs(alike(sound, RATE_HZ, RATE_HZ, -30.0)) == pytest.approx(-30.0, abs=0.02)


@pytest.mark.parametrize("level", [1e-5, 1.0, 30.0])
def test_the_accompaniment_has_the_loudness_of_the_vocal(level: float) -> None:
    vocal = 0.05 * noise(3.0, 1)
    mix = mixed(vocal, (level * noise(3.0, 2)).astype(np.float32), RATE_HZ)
    scale = float(vocal @ mix / (vocal @ vocal))  # the mix may be turned down as a whole
    accompaniment = mix / scale - vocal
    assert lufs(accompaniment) == pytest.approx(lufs(vocal), abs=0.2)


def test_all_sounds_end_at_the_same_frequencies() -> None:
    """One sound that ends below, one that reaches half the rate, one with an offset: the same band is left."""
    sound = alike(noise(5.0) + np.float32(0.5), RATE_HZ, RATE_HZ, -23.0)
    frequencies, power = welch(sound, RATE_HZ, nperseg=8192, detrend=False)
    level = 10 * np.log10(power / np.median(power))
    half = RATE_HZ / 2
    assert np.abs(level[(frequencies > 100) & (frequencies < 0.84 * half)]).max() < 2.5  # white, as it was
    assert level[frequencies > 0.91 * half].max() < -80
    assert level[frequencies < 5].max() < -20


def test_the_rate_of_the_study_may_be_lower() -> None:
    sound = alike(noise(3.0), RATE_HZ, 16000, -23.0)
    assert len(sound) == 48000
    assert lufs(sound, 16000) == pytest.approx(-23.0, abs=0.02)


def test_nothing_is_moved_in_time() -> None:
    sound = noise(1.0)
    made = alike(sound, RATE_HZ, RATE_HZ, -23.0)
    correlation = np.correlate(made, sound[1000:-1000], "valid")
    assert int(correlation.argmax()) == 1000


def test_both_ends_are_faded() -> None:
    sound = alike(
        np.ones(RATE_HZ, np.float32) * np.sin(np.arange(RATE_HZ) * 0.3).astype(np.float32), RATE_HZ, RATE_HZ, -23
    )
    middle = np.abs(sound[RATE_HZ // 2 :][:500]).max()
    for end in (sound, sound[::-1]):
        assert np.abs(end[:10]).max() < 0.01 * middle
        assert np.abs(end[300:500]).max() > 0.9 * middle


def test_silence_is_refused() -> None:
    with pytest.raises(ValueError, match="silent"):
        alike(np.zeros(RATE_HZ, np.float32), RATE_HZ, RATE_HZ, -23.0)


def test_the_true_peak_is_that_between_the_samples() -> None:
    """A sine at a quarter of the rate, sampled beside its peaks."""
    sound = (0.5 * np.sin(np.pi / 2 * np.arange(RATE_HZ) + np.pi / 4)).astype(np.float32)
    between = float(np.abs(resample_poly(sound.astype(np.float64), 8, 1)[2000:-2000]).max())
    assert peak_of(sound, RATE_HZ) == pytest.approx(20 * math.log10(between), abs=0.2)
    assert between > 1.4 * np.abs(sound).max()


def test_rounding_is_to_16_bits_with_triangular_dither() -> None:
    soft = np.full(200_000, 0.3 / 32768, np.float32)  # a third of a step: lost without dither
    steps = rounded(soft, 0.0, "seed") * 32768
    assert np.array_equal(steps, np.rint(steps))
    assert set(np.unique(steps)) == {-1, 0, 1}
    assert steps.mean() == pytest.approx(0.3, abs=0.01)
    # triangular over +-1 step and rounding: variance 1/6 + 1/12, whatever the signal (Lipshitz et al. 1992)
    errors = [float(np.var(rounded(np.full(200_000, c / 32768, np.float32), 0.0, "x") * 32768)) for c in (0, 0.25, 0.5)]
    assert errors == pytest.approx([0.25] * 3, abs=0.005)


def test_the_seed_draws_the_dither_and_nothing_passes_full_scale() -> None:
    sound = noise(0.5)
    assert np.array_equal(rounded(sound, -3.0, "a"), rounded(sound, -3.0, "a"))
    assert not np.array_equal(rounded(sound, -3.0, "a"), rounded(sound, -3.0, "b"))
    assert np.abs(rounded(sound, 60.0, "a")).max() <= 1.0
    assert np.std(rounded(sound, -20.0, "a")) == pytest.approx(0.1 * np.std(sound), rel=1e-3)
