"""Features of the offline tokenizers, frame by frame, and for the acoustic one the way back to sound.

Choices:

* Semantic frames join four groups: MFCCs (timbre), loudness, onset strength in three bands (rhythm) and chroma
  (harmony). Chroma is divided by its own length, so that it describes pitches and not loudness; without tonal sound it
  fades to zero.
* Acoustic frames are log-mel: short windows keep drums sharp, narrow bands keep chords readable.
* A soft floor under every logarithm: sound far below the music (silence, dither, the noise that preparation adds to
  vocals) does not change tokens.
* From mel bands to spectrum bins by Richardson-Lucy iteration: magnitudes stay positive, and overlapping bands sharpen
  the harmonics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hafm_lightning.tokenizers import spectra
from hafm_lightning.tokenizers.base import ACOUSTIC_HOP, ACOUSTIC_SAMPLE_RATE_HZ, SEMANTIC_HOP, SEMANTIC_SAMPLE_RATE_HZ

FRONT_END_VERSION = 1  # part of every identity; raised when the same settings give other features
INVERSION_ITERATIONS = 10
GRIFFIN_LIM_ITERATIONS = 24
SILENCE_GATE = 0.06
"""Magnitudes below this share of ``mel_floor`` are faded out on the way back to sound. It is twice the standard
deviation of the quantization noise in a silent band; half of that noise lies above the floor and would be a hiss of
about -95 dB re full scale per band."""
PHASE_SEED = 0
PITCH_CLASSES = 12
LONGEST_WINDOW = 1 << 16
"""Samples of a window at most: seconds of sound, where a clip has ten."""
MOST_BANDS = 1 << 12
"""Bands of a spectrum at most."""


@dataclass(frozen=True)
class SemanticSettings:
    """The semantic front end, at 16 kHz. Magnitudes are relative to a full-scale sine, windows are in samples."""

    mel_window: int = 1024  # of mel bands, hence of cepstra, loudness and onsets
    mel_bands: int = 48
    mel_low_hz: float = 40.0  # lower edge of the lowest band
    mel_high_hz: float = 7600.0  # upper edge of the highest band
    mel_floor: float = 3e-3  # magnitude added before the logarithm
    cepstra: int = 12  # MFCCs besides the zeroth, which is the loudness
    onset_bands: int = 3  # parts of the spectrum whose rise is measured separately
    chroma_window: int = 2048
    chroma_low_hz: float = 80.0  # lower frequencies do not count
    chroma_high_hz: float = 2000.0  # higher frequencies do not count
    chroma_floor: float = 1e-2  # magnitude below which a pitch class counts for little
    chroma_gate: float = 1.0  # length of a chroma vector below which it fades
    # Share of the variance that k-means sees, relative to the other weights.
    cepstra_weight: float = 0.3
    loudness_weight: float = 0.15
    onset_weight: float = 0.2
    chroma_weight: float = 2.0

    def __post_init__(self) -> None:
        _check_counts(self, ("mel_window", "chroma_window"), SEMANTIC_HOP, LONGEST_WINDOW)
        _check_counts(self, ("mel_bands", "cepstra", "onset_bands"), 1, MOST_BANDS)
        if max(self.cepstra + 1, self.onset_bands) > self.mel_bands:
            raise ValueError("cepstra + 1 and onset_bands must be at most mel_bands")
        _check_bands(self, ("mel", "chroma"), SEMANTIC_SAMPLE_RATE_HZ)
        _check_positive(self, ("mel_floor", "chroma_floor", "chroma_gate"))
        _check_positive(self, ("cepstra_weight", "loudness_weight", "onset_weight", "chroma_weight"))


@dataclass(frozen=True)
class AcousticSettings:
    """The acoustic front end, at 24 kHz. Magnitudes are relative to a full-scale sine."""

    window_hops: int = 5  # length of the window in frames of 320 samples
    mel_bands: int = 192
    mel_low_hz: float = 30.0  # lower edge of the lowest band
    mel_high_hz: float = 12000.0  # upper edge of the highest band
    mel_floor: float = 1e-3  # magnitude added before the logarithm
    components: int = 64  # principal components that are quantized

    def __post_init__(self) -> None:
        _check_counts(self, ("window_hops",), 1, LONGEST_WINDOW // ACOUSTIC_HOP)
        _check_counts(self, ("mel_bands", "components"), 1, MOST_BANDS)
        if self.components > self.mel_bands:
            raise ValueError("components must be at most mel_bands")
        _check_bands(self, ("mel",), ACOUSTIC_SAMPLE_RATE_HZ)
        _check_positive(self, ("mel_floor",))


# A tokenizer's description may come from anywhere; these numbers decide what is divided by and how much is allocated.


def _check_counts(settings: object, names: Sequence[str], low: int, high: int) -> None:
    for name in names:
        if not low <= getattr(settings, name) <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {getattr(settings, name)!s:.40}")


def _check_bands(settings: object, kinds: Sequence[str], rate_hz: int) -> None:
    for kind in kinds:
        low, high = getattr(settings, f"{kind}_low_hz"), getattr(settings, f"{kind}_high_hz")
        if not 0 <= low < high <= rate_hz / 2:
            raise ValueError(f"{kind}_low_hz and {kind}_high_hz must rise within 0 to {rate_hz / 2:g}")


def _check_positive(settings: object, names: Sequence[str]) -> None:
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(settings, name)!s:.40}")


class SemanticFrontEnd:
    """A clip at 16 kHz -> raw feature frames at 50 Hz: cepstra, loudness, onset strengths, chroma."""

    def __init__(self, settings: SemanticSettings) -> None:
        self.settings = settings
        rate = SEMANTIC_SAMPLE_RATE_HZ
        self._mel = spectra.mel_filters(
            rate, settings.mel_window, settings.mel_bands, settings.mel_low_hz, settings.mel_high_hz
        )
        self._cosines = spectra.cosine_transform(settings.mel_bands, settings.cepstra + 1)
        self._chroma = spectra.chroma_filters(
            rate, settings.chroma_window, settings.chroma_low_hz, settings.chroma_high_hz
        )
        longest = max(settings.mel_window, settings.chroma_window)
        # Half the longer window on each side of a frame's centre, and the frame before for onsets.
        self.context_s = (longest / 2 + SEMANTIC_HOP) / rate

    def __call__(self, audio: Tensor) -> Tensor:
        """``[L]`` -> float64 ``[T, d]``."""
        settings = self.settings
        mel = spectra.magnitudes(audio, settings.mel_window, SEMANTIC_HOP) @ self._mel.T
        log_mel = torch.log(mel + settings.mel_floor)
        cepstra = log_mel @ self._cosines.T  # [T, 1 + cepstra]
        rise = torch.diff(log_mel, dim=0, prepend=log_mel[:1]).clamp(min=0)
        onset = torch.stack([part.mean(dim=1) for part in rise.tensor_split(settings.onset_bands, dim=1)], dim=1)
        power = spectra.magnitudes(audio, settings.chroma_window, SEMANTIC_HOP).square() @ self._chroma.T
        chroma = torch.log1p(power / settings.chroma_floor**2)
        chroma = chroma - chroma.mean(dim=1, keepdim=True)
        chroma = chroma / (torch.linalg.vector_norm(chroma, dim=1, keepdim=True) + settings.chroma_gate)
        return torch.cat((cepstra[:, 1:], cepstra[:, :1], onset, chroma), dim=1)

    def scales(self, frames: Tensor) -> Tensor:
        """Factor of each feature of the raw ``frames [n, d]``, so that every group has its weight of the variance."""
        settings = self.settings
        groups = [
            (settings.cepstra, settings.cepstra_weight),
            (1, settings.loudness_weight),
            (settings.onset_bands, settings.onset_weight),
            (PITCH_CLASSES, settings.chroma_weight),
        ]
        deviation = frames.std(dim=0, correction=0).clamp(min=1e-6)
        parts = []
        for number, part in enumerate(torch.split(deviation, [size for size, _ in groups])):
            size, weight = groups[number]
            # Cepstra are scaled one by one: the higher ones are small but tell timbres apart.
            spread = part * math.sqrt(size) if number == 0 else part.norm().expand(size)
            parts.append(math.sqrt(weight) / spread)
        return torch.cat(parts)


class AcousticFrontEnd:
    """A clip at 24 kHz -> log-mel frames at 75 Hz, and back."""

    def __init__(self, settings: AcousticSettings) -> None:
        self._window, self._floor = settings.window_hops * ACOUSTIC_HOP, settings.mel_floor
        self._mel = spectra.mel_filters(
            ACOUSTIC_SAMPLE_RATE_HZ, self._window, settings.mel_bands, settings.mel_low_hz, settings.mel_high_hz
        )
        self.context_s = self._window / 2 / ACOUSTIC_SAMPLE_RATE_HZ

    def __call__(self, audio: Tensor) -> Tensor:
        """``[L]`` -> float64 ``[T, M]``."""
        return torch.log(spectra.magnitudes(audio, self._window, ACOUSTIC_HOP) @ self._mel.T + self._floor)

    def magnitudes(self, log_mel: Tensor) -> Tensor:
        """Spectrum with about the mel bands of ``log_mel [T, M]``: float64 ``[T, window / 2 + 1]``."""
        bands = (log_mel.double().exp() - self._floor).clamp(min=0)
        bands = bands * bands.square() / (bands.square() + (SILENCE_GATE * self._floor) ** 2)
        coverage = self._mel.sum(dim=0).clamp(min=1e-12)
        spectrum = bands @ (self._mel / coverage)
        for _ in range(INVERSION_ITERATIONS):
            ratio = bands / (spectrum @ self._mel.T).clamp(min=1e-9)
            spectrum = spectrum * ((ratio @ self._mel) / coverage)
        return spectrum

    def sound(self, magnitudes: Tensor) -> Tensor:
        """Sound with about such a spectrum: ``[T, window / 2 + 1]`` -> float32 ``[T * 320]``."""
        return spectra.griffin_lim(magnitudes, ACOUSTIC_HOP, GRIFFIN_LIM_ITERATIONS, PHASE_SEED)
