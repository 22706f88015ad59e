"""Clips and systems for a study, without a model: noise that gives each system away by level, band, offset or edges."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, sosfilt

from hafm_lightning.listening.trials.draw import ClipName
from hafm_lightning.listening.trials.material import Material
from hafm_lightning.listening.trials.sounds import Samples

RATE_HZ, DURATION_S = 24000, 1.0
LENGTH = round(RATE_HZ * DURATION_S)


def noise(name: str, cut_hz: float = 0.0) -> Samples:
    """Bursts of noise below ``cut_hz``, other ones for another name."""
    generator = np.random.default_rng(list(name.encode()))
    bursts = np.repeat(generator.random(10) > 0.3, LENGTH // 10)
    sound = generator.standard_normal(LENGTH) * (0.1 + bursts)
    if cut_hz:
        sound = sosfilt(butter(8, cut_hz, fs=RATE_HZ, output="sos"), sound)
    return (0.1 * sound).astype(np.float32)


def accompaniment(system: str, name: ClipName) -> Samples:
    """What a system plays: ``ground_truth`` as it is, the others with a giveaway each."""
    if system == "dull":
        return noise(f"{system} {name.clip}", 4000.0)
    if system == "loud":  # over full scale, with an offset and spikes
        sound = 12 * noise(f"{system} {name.clip}") + np.float32(0.4)
        sound[::6000] += 5
        return sound
    if system == "quiet":  # below the gate of BS.1770, silent at both ends
        sound = np.float32(1e-5) * noise(f"{system} {name.clip}")
        sound[:4000] = sound[-4000:] = 0
        return sound
    return noise(f"{system} {name.clip}")


def made_material(clips: int) -> Material:
    """Any system on ``clips`` clips of one song each."""
    names = [ClipName(f"song {index}@0", f"song {index}") for index in range(clips)]
    return Material(
        names,
        DURATION_S,
        RATE_HZ,
        lambda name: noise(f"vocal {name.clip}", 3000.0),
        accompaniment,
        "0" * 64,
        {"made": "of noise"},
    )
