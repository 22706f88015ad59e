"""The mix: the singer as loud as they sang, the band limited, both files at one balance; measured independently."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import resample_poly
from tiny_band import sing

from hafm_lightning.accompanist.mixing import Mixed, MixOptions, limit_band, mix_take
from hafm_lightning.audio import Audio, loudness_lufs

FINER_DB = 0.1
"""Eight times the rate and another filter find peaks that four times (BS.1770) does not."""


def true_peak_db(samples: np.ndarray) -> float:
    """The peak at eight times the rate, by scipy's polyphase filter instead of soxr."""
    between = resample_poly(samples.astype(np.float64), 8, 1, axis=-1)
    return float(20 * np.log10(max(np.abs(between).max(), np.abs(samples).max())))


def band_of(seconds: float, level: float = 0.3) -> Audio:
    """Drums and a chord: short peaks over something steady, mono at 24 kHz."""
    time = np.arange(round(seconds * 24000)) / 24000
    chord = sum(np.sin(2 * np.pi * pitch_hz * time) for pitch_hz in (110, 220, 277, 330)) / 4
    hits = np.exp(-((time % 0.25) * 40)) * np.random.default_rng(0).standard_normal(len(time))
    return Audio((level * (chord + hits))[None].astype(np.float32), 24000)


def voice_at(peak: float, seconds: float = 3.0, rate_hz: int = 44100, channels: int = 1) -> Audio:
    vocal = sing(seconds, rate_hz, channels=channels)
    return Audio(vocal.samples * np.float32(peak / np.abs(vocal.samples).max()), rate_hz)


def mixed(peak: float, **options: float) -> tuple[Audio, Mixed]:
    vocal = voice_at(peak)
    return vocal, mix_take(vocal, band_of(3.0), MixOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("peak", [0.05, 0.3, 0.7, 0.8])
@pytest.mark.parametrize("gain_db", [0.0, 6.0, -12.0, 40.0])
def test_the_singer_keeps_their_level_and_the_band_makes_room(peak: float, gain_db: float) -> None:
    vocal, result = mixed(peak, gain_db=gain_db)
    assert result.voice_gain_db == 0
    np.testing.assert_allclose(result.mix.samples - result.instrumental.samples, vocal.samples, atol=1e-6)
    assert true_peak_db(result.mix.samples) <= -1 + FINER_DB
    assert true_peak_db(result.instrumental.samples) <= -1 + FINER_DB


@pytest.mark.parametrize("peak", [0.95, 1.0, 2.0])
def test_a_voice_above_the_ceiling_is_lowered_just_to_it(peak: float) -> None:
    vocal, result = mixed(peak)
    own_db = true_peak_db(vocal.samples)
    assert result.voice_gain_db == pytest.approx(-1 - own_db, abs=0.1)
    assert true_peak_db(result.mix.samples) <= -1 + FINER_DB
    voice = vocal.samples * 10 ** (result.voice_gain_db / 20)
    np.testing.assert_allclose(result.mix.samples - result.instrumental.samples, voice, atol=1e-5)


def test_the_accompaniment_alone_is_at_the_balance_of_the_mix() -> None:
    vocal, result = mixed(0.3)
    assert loudness_lufs(result.instrumental) == pytest.approx(loudness_lufs(vocal), abs=0.5)
    _, softer = mixed(0.3, gain_db=-6.0)
    assert loudness_lufs(result.instrumental) - loudness_lufs(softer.instrumental) == pytest.approx(6.0, abs=0.5)
    _, own = mixed(0.3, match_loudness=False)
    assert own.band_gain_db == 0


def test_a_limiter_that_is_not_needed_changes_no_sample() -> None:
    voice, band = voice_at(0.2).samples, 0.2 * np.ones((1, 132300), np.float32)
    limited, least = limit_band(voice, band, 44100, -1.0)
    np.testing.assert_array_equal(limited, band)
    assert least == 1


def test_the_limiter_lets_go_within_milliseconds() -> None:
    voice = np.zeros((1, 44100), np.float32)
    voice[0, 22050] = 0.8
    band = np.full((1, 44100), 0.5, np.float32)
    limited, least = limit_band(voice, band, 44100, -1.0)
    away = np.abs(np.arange(44100) - 22050) > 0.015 * 44100
    np.testing.assert_array_equal(limited[:, away], band[:, away])
    assert least < 0.3
    assert np.abs(np.diff(limited[0])).max() < 0.01  # it fades, without a click


@pytest.mark.parametrize(
    ("rate_hz", "channels", "options", "expected"),
    [
        (44100, 2, {}, (44100, 2)),
        (8000, 1, {}, (8000, 1)),
        (192000, 1, {}, (192000, 1)),
        (4000, 1, {}, (8000, 1)),
        (384000, 1, {}, (192000, 1)),
        (44100, 6, {}, (44100, 2)),
        (44100, 2, {"rate_hz": 24000, "channels": 1}, (24000, 1)),
        (44100, 1, {"channels": 2}, (44100, 2)),
    ],
)
def test_a_vocal_comes_back_at_its_own_rate_and_channels(
    rate_hz: int, channels: int, options: dict[str, int], expected: tuple[int, int]
) -> None:
    vocal = voice_at(0.5, 0.6, rate_hz, channels)
    result = mix_take(vocal, band_of(0.6), MixOptions(**options))
    length = round(vocal.samples.shape[1] * expected[0] / rate_hz)
    assert (result.mix.rate_hz, result.mix.samples.shape) == (expected[0], (expected[1], length))
    assert result.instrumental.samples.shape == (1, length)


@pytest.mark.parametrize("seconds", [0.0001, 0.003, 0.04])
def test_the_shortest_vocals_are_mixed(seconds: float) -> None:
    vocal = voice_at(0.9, seconds) if seconds > 0.001 else Audio(np.full((1, 4), 0.9, np.float32), 44100)
    result = mix_take(vocal, band_of(0.1), MixOptions(gain_db=20.0))
    assert result.mix.samples.shape == vocal.samples.shape
    assert np.abs(result.mix.samples).max() <= 1
