"""A sound to embed, the published log-mel recipe written out, and a file's hash."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np


def sound(seconds: float, rate_hz: int = 16000, seed: int = 0) -> np.ndarray:
    """A gliding tone in noise, mono float32."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (220 + 40 * t) * t) + 0.02 * noise).astype(np.float32)


def published_log_mel(signal: np.ndarray) -> np.ndarray:
    """The recipe, number by number: a DFT written out, one triangle at a time."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    bins = np.arange(257)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(400), bins) / 512)  # samples 400..511 are zeros
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = [mel(125.0) + i * (mel(7500.0) - mel(125.0)) / 65 for i in range(66)]
    rows = []
    for start in range(0, len(signal) - 400 + 1, 160):
        magnitude = np.abs((signal[start : start + 400].astype(np.float64) * window) @ fourier)
        bands = []
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            total = 0.0
            for index in range(1, 257):
                position = mel(index * 8000.0 / 256)
                if low < position < high:
                    rising = (position - low) / (centre - low)
                    falling = (high - position) / (high - centre)
                    total += magnitude[index] * min(rising, falling)
            bands.append(math.log(total + 0.01))
        rows.append(bands)
    return np.array(rows)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
