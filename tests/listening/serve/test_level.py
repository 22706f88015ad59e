"""The level check is as loud as the study and tells nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
from tiny_study import make_tiny_study

from hafm_lightning.listening.serve.level import level_check, pink_noise


def test_the_noise_is_as_loud_as_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_study.DURATION_S", 2.0)
    study, _ = make_tiny_study(tmp_path, clips=1)
    noise, rate = soundfile.read(io.BytesIO(level_check(study)))
    sound, _ = soundfile.read(tmp_path / study.trials[0].a)
    assert rate == study.rate_hz
    meter = pyloudnorm.Meter(rate)
    assert meter.integrated_loudness(noise) == pytest.approx(meter.integrated_loudness(sound), abs=0.1)
    assert np.abs(noise).max() < 0.95


def test_each_octave_of_the_noise_has_the_same_power() -> None:
    rate = 24_000
    noise = pink_noise(rate)
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(len(noise), 1 / rate)
    octaves = [power[(hz >= low) & (hz < 2 * low)].sum() for low in (100, 200, 400, 800, 1600, 3200)]
    assert max(octaves) / min(octaves) < 1.5
    assert abs(noise[0]) < 1e-3
    assert abs(noise[-1]) < 1e-3
