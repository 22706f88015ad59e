"""Features of the offline tokenizers, frame by frame, and for the acoustic one the way back to sound.

Choices:

* Semantic frames join four groups: MFCCs (timbre), loudness, onset strength in three bands (rhythm) and chroma
  (harmony). Chroma is divided by its own length, so that it says which pitches sound rather than how loud; where
  nothing tonal sounds it fades to zero.
* Acoustic frames are log-mel. The window is short enough that drums stay sharp, the bands are narrow enough that chords
  stay readable.
* A soft floor under every logarithm: what lies far below the music does not move tokens, be it silence, dither, or the
  noise that preparation adds to vocals.
* From mel bands back to spectrum bins by Richardson-Lucy iteration: magnitudes stay positive, and bands that overlap
  agree, which sharpens the harmonics that the bands have smeared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import spectra
from hafm_lightning.tokenizers.base import ACOUSTIC_HOP, ACOUSTIC_SAMPLE_RATE_HZ, SEMANTIC_HOP, SEMANTIC_SAMPLE_RATE_HZ

FRONT_END_VERSION = 1
"""Raised when the same settings give other features than before; part of every identity."""
INVERSION_ITERATIONS = 10
GRIFFIN_LIM_ITERATIONS = 24
SILENCE_GATE = 0.06
"""Magnitudes below this share of ``mel_floor`` are faded out on the way back to sound. It is twice the standard
deviation of what quantization adds to a silent band: half of that noise lies above the floor, and would be heard as a
hiss at about -95 dB re full scale a band, which log-spectral distances weigh more than what the last codebooks add."""
PHASE_SEED = 0

PITCH_CLASSES = 12


@dataclass(frozen=True)
class SemanticSettings:
    """The semantic front end. Magnitudes are relative to a full-scale sine.

    Attributes:
        mel_window: Samples at 16 kHz seen by mel bands, hence by cepstra, loudness and onsets.
        mel_bands: Number of mel bands.
        mel_low_hz: Lower edge of the lowest band.
        mel_high_hz: Upper edge of the highest band.
        mel_floor: Magnitude added before the logarithm.
        cepstra: MFCCs besides the zeroth, which is the loudness.
        onset_bands: Parts of the spectrum whose rise is measured apart.
        chroma_window: Samples at 16 kHz seen by chroma.
        chroma_low_hz: Lowest frequency that counts for chroma.
        chroma_high_hz: Highest frequency that counts for chroma.
        chroma_floor: Magnitude below which a pitch class counts for little.
        chroma_gate: Length of a chroma vector below which it fades.
        cepstra_weight: Share of the variance that k-means sees, relative to the other weights.
        loudness_weight: As above.
        onset_weight: As above.
        chroma_weight: As above.
    """

    mel_window: int = 1024
    mel_bands: int = 48
    mel_low_hz: float = 40.0
    mel_high_hz: float = 7600.0
    mel_floor: float = 3e-3
    cepstra: int = 12
    onset_bands: int = 3
    chroma_window: int = 2048
    chroma_low_hz: float = 80.0
    chroma_high_hz: float = 2000.0
    chroma_floor: float = 1e-2
    chroma_gate: float = 1.0
    cepstra_weight: float = 0.3
    loudness_weight: float = 0.15
    onset_weight: float = 0.2
    chroma_weight: float = 2.0


@dataclass(frozen=True)
class AcousticSettings:
    """The acoustic front end. Magnitudes are relative to a full-scale sine.

    Attributes:
        window_hops: Length of the window in frames of 320 samples at 24 kHz.
        mel_bands: Number of mel bands.
        mel_low_hz: Lower edge of the lowest band.
        mel_high_hz: Upper edge of the highest band.
        mel_floor: Magnitude added before the logarithm.
        components: Principal components that are quantized.
    """

    window_hops: int = 5
    mel_bands: int = 192
    mel_low_hz: float = 30.0
    mel_high_hz: float = 12000.0
    mel_floor: float = 1e-3
    components: int = 64


Settings = TypeVar("Settings", SemanticSettings, AcousticSettings)


def settings_as_dict(settings: SemanticSettings | AcousticSettings) -> dict[str, Any]:
    """Settings and the version of the front end as JSON values. Inverse: :func:`settings_from_dict`."""
    return {"front_end": FRONT_END_VERSION, **asdict(settings)}


def settings_from_dict(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Inverse of :func:`settings_as_dict`; RequestError when they are of another version."""
    names = {field.name for field in fields(kind)}
    if values.get("front_end") != FRONT_END_VERSION or set(values) != names | {"front_end"}:
        raise RequestError(
            f"the offline tokenizer was made by front end {values.get('front_end')}, this program has "
            f"{FRONT_END_VERSION}: prepare the shards (or train the tokenizers) again"
        )
    return kind(**{name: values[name] for name in names})


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
        # half the longer window on each side of a frame's centre, and the frame before for onsets
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
        """Factor of each feature, given raw ``frames [n, d]``, that gives every group its weight of the variance.

        Cepstra are scaled one by one: the higher ones are small but tell timbres apart. The features of the other
        groups keep their proportions.
        """
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
        """Spectrum whose mel bands come near those of ``log_mel [T, M]``: float64 ``[T, window / 2 + 1]``."""
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
