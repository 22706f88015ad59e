"""Sound in memory: samples and their rate, another rate, and one channel from several."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

RESAMPLER = "soxr-hq"
"""Identity of :func:`resample`, recorded in manifests and tokenizers."""

_FRAME_S = 0.1  # length of the frames on which cancellation is measured
_CANCELLED = 0.3  # power of the channels' mean, relative to uncorrelated channels, below which they cancel
_LOST = 0.1  # share of the sound's power in such frames from which one channel is taken alone


class SoundWarning(UserWarning):
    """Something about a sound that its owner should know, in one line."""


@dataclass(frozen=True)
class Audio:
    """Sound in memory."""

    samples: Samples  # float32 `[channels, L]`, full scale at 1.0
    rate_hz: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.shape[0] < 1:
            raise ValueError(f"expected samples [channels, L] with at least one channel, got {self.samples.shape}")
        if self.samples.dtype != np.float32:
            raise ValueError(f"expected float32 samples, got {self.samples.dtype}")
        if self.rate_hz <= 0:
            raise ValueError(f"the sample rate must be positive, got {self.rate_hz} Hz")

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.samples.shape[0])

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return float(self.samples.shape[1] / self.rate_hz)

    def mono(self) -> Audio:
        """One channel ``[1, L]``: the mean, or the strongest channel if the channels cancel each other.

        That is announced by a :class:`SoundWarning`.
        """
        if self.channels == 1:
            return self
        if (channel := cancelling(self.samples, self.rate_hz)) is None:
            return Audio(self.samples.mean(axis=0, keepdims=True, dtype=np.float32), self.rate_hz)
        warn_of_cancellation("the sound", channel)
        return Audio(self.samples[channel : channel + 1], self.rate_hz)


@dataclass(frozen=True)
class AudioInfo:
    """Header of an audio file."""

    rate_hz: int
    channels: int
    frames: int  # samples of each channel

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate_hz


class Cancellation:
    """Finds channels that cancel each other in their mean, from blocks of a sound.

    A channel that is another one turned upside down (bad cables, some phones, "wide" effects) leaves silence, or
    little, in the mean. Ordinary stereo keeps half of its power or more; uncorrelated channels keep ``1 / channels``.
    """

    def __init__(self, channels: int, rate_hz: int) -> None:
        self._frame = max(1, round(_FRAME_S * rate_hz))
        self._power = np.zeros(channels)  # of each channel
        self._cancelled = 0.0  # power in frames where the channels cancel

    def add(self, samples: Samples) -> None:
        """Count ``[C, n]``; every block but the last must have whole frames of 0.1 s."""
        channels, length = samples.shape
        for start in range(0, length, self._frame * 64):  # float64 copies of a few seconds at most
            part = samples[:, start : start + self._frame * 64]
            whole = part.shape[1] // self._frame * self._frame
            pieces = [part[:, :whole].reshape(channels, -1, self._frame)] if whole else []
            pieces += [part[:, None, whole:]] if whole < part.shape[1] else []
            for piece in pieces:
                self._count(piece)

    def _count(self, frames: Samples) -> None:
        """Count frames ``[C, n, frame]``."""
        centred = frames - frames.mean(axis=2, keepdims=True, dtype=np.float64)
        power = np.square(centred).sum(axis=2)  # [C, n]
        mean_power = np.square(centred.mean(axis=0)).sum(axis=1)  # [n]
        self._power += power.sum(axis=1)
        lost = mean_power * len(power) ** 2 < _CANCELLED * power.sum(axis=0)
        self._cancelled += float(power.sum(axis=0)[lost].sum())

    def channel(self) -> int | None:
        """The strongest channel if the channels cancel, else None."""
        if len(self._power) < 2 or self._cancelled <= _LOST * float(self._power.sum()):
            return None
        return int(np.argmax(self._power))


def cancelling(samples: Samples, rate_hz: int) -> int | None:
    """The strongest channel of ``[C, L]`` if the channels cancel each other in their mean, else None."""
    if len(samples) < 2:
        return None
    count = Cancellation(len(samples), rate_hz)
    count.add(samples)
    return count.channel()


def in_phase(samples: Samples, rate_hz: int) -> Samples:
    """``[C, L]`` as it is, or its strongest channel ``[1, L]`` if the channels cancel each other in their mean."""
    channel = cancelling(samples, rate_hz)
    return samples if channel is None else samples[channel : channel + 1]


def warn_of_cancellation(name: object, channel: int) -> None:
    """Warn that one channel is used alone."""
    text = f"{name}: its channels cancel each other (opposite polarity); channel {channel + 1} is used alone"
    warnings.warn(text, SoundWarning, stacklevel=3)


def resample(samples: npt.NDArray[Any], from_hz: float, to_hz: float) -> Samples:
    """Change the sample rate of ``[..., L]``; returns float32 ``[..., round(L * to_hz / from_hz)]``.

    >>> resample(np.zeros((2, 44100)), 44100, 24000).shape
    (2, 24000)
    """
    import soxr

    if not (from_hz > 0 and to_hz > 0):
        raise ValueError(f"sample rates must be positive, got {from_hz} and {to_hz} Hz")
    source = np.asarray(samples, dtype=np.float32)
    if from_hz == to_hz:
        return source.copy()
    *leading, length = source.shape
    wanted = round(length * to_hz / from_hz)
    result = np.zeros((math.prod(leading), wanted), dtype=np.float32)
    if length:
        for row, signal in zip(result, source.reshape(-1, length), strict=True):
            converted = soxr.resample(np.ascontiguousarray(signal), from_hz, to_hz, quality="HQ")[:wanted]
            row[: len(converted)] = converted
    return result.reshape(*leading, wanted)
