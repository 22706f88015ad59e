"""The sound by which listeners set their volume: pink noise as loud as the study, which tells nothing about it."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from hafm_lightning.audio import Audio, read_audio, true_peak_dbtp, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.study import Study
from hafm_lightning.listening.trials.sounds import PEAK_DBTP, Samples, loudness_of

NOISE_S = 4.0
FADE_S = 0.2
LOWEST_HZ = 40.0


def level_check(study: Study) -> bytes:
    """Noise of :data:`NOISE_S` at the loudness of a mix of the study, by ITU-R BS.1770-4, as a 16-bit wav file.

    The peak stays below that of the trials; a study that is louder than noise can be is met as nearly as possible.
    """
    trial = study.trials[0]
    sounds = [read_audio(study.folder / name).mono() for name in (trial.a, trial.b)]
    loudness = max(loudness_of(sound.samples[0], study.rate_hz) for sound in sounds)  # a control may be quieter
    noise = pink_noise(study.rate_hz)
    gain_db = loudness - loudness_of(noise, study.rate_hz) if math.isfinite(loudness) else -math.inf
    noise = noise * np.float32(10 ** (gain_db / 20))
    excess_db = true_peak_dbtp(Audio(noise[None], study.rate_hz)) - PEAK_DBTP
    if excess_db > 0:
        noise = noise * np.float32(10 ** (-excess_db / 20))
    with tempfile.TemporaryDirectory(prefix="hafm-listen-") as folder:
        file = Path(folder) / "level.wav"
        write_audio(file, Audio(noise[None], study.rate_hz))
        return file.read_bytes()


def pink_noise(rate_hz: int) -> Samples:
    """Noise ``[L]`` with equal power in every octave, with faded ends; always the same."""
    length = round(NOISE_S * rate_hz)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(length))
    frequencies = np.fft.rfftfreq(length, 1 / rate_hz)
    spectrum[frequencies < LOWEST_HZ] = 0
    spectrum[1:] /= np.sqrt(frequencies[1:])
    noise = np.fft.irfft(spectrum, length)
    fade = np.sin(np.linspace(0, np.pi / 2, round(FADE_S * rate_hz))) ** 2
    noise[: len(fade)] *= fade
    noise[-len(fade) :] *= fade[::-1]
    return np.asarray(0.1 * noise / np.sqrt(np.mean(noise**2)), dtype=np.float32)


def check_sizes(study: Study) -> None:
    """RequestError unless all sounds have one size: another size would tell listeners something."""
    sizes: dict[int, str] = {}
    for trial in study.trials:
        for name in trial.files:
            sizes.setdefault((study.folder / name).stat().st_size, name)
    if len(sizes) > 1:
        first, second = list(sizes.values())[:2]
        raise RequestError(
            f"{study.folder}: {first} and {second} have different sizes, by which listeners could tell them apart\n"
            "build the study again with `listen build`"
        )
