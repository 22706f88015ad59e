"""Embeddings: audio -> rows ``[n, d]`` that Frechet and kernel distances compare. One class to implement, one registry.

An :class:`Embedding` states its sample rate, the width of its rows and an *identity*: a sha256 over everything that
changes a row (weights, layer, framing, settings). The identity goes into every statistics file and every card, and two
sets of different identities are never compared.

``logmel`` needs no download and no network: the low coefficients of a 2-D cosine transform of VGGish's log-mel patch.
It ranks recordings by timbre and rhythm, and it is **not** VGGish: a FAD printed with it is labelled ``logmel``.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import IDENTITY_KEY
from hafm_lightning.evaluation.embeddings import log_mel

Waveform = Tensor | npt.NDArray[np.float32]


class Embedding(ABC):
    """Rows for waveforms. Subclasses implement :meth:`clip_rows`.

    Args:
        name: Label on cards and in logs, e.g. ``vggish``.
        rate_hz: Sample rate that :meth:`rows` expects.
        dimensions: Width ``d`` of a row.
        settings: Everything that changes a row, as JSON values (weights' sha256, layer, framing, window).
        source: Where the weights came from, for people to read; not part of the identity.
    """

    def __init__(self, name: str, rate_hz: int, dimensions: int, settings: Mapping[str, Any], source: str = "") -> None:
        self.name = name
        self.rate_hz = rate_hz
        self.dimensions = dimensions
        self.settings = dict(settings)
        self.source = source

    @property
    def identity(self) -> str:
        """``name:`` and the sha256 of the name, rate, width and settings."""
        text = json.dumps([self.name, self.rate_hz, self.dimensions, self.settings], sort_keys=True)
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()}"

    def provenance(self, **more: Any) -> dict[str, Any]:
        """What a statistics file says of this embedding, with ``more`` (set, clips, seconds a clip) added."""
        return {
            IDENTITY_KEY: self.identity,
            "embedding": self.name,
            "rate_hz": self.rate_hz,
            "dimensions": self.dimensions,
            "settings": self.settings,
            "source": self.source,
            **more,
        }

    def rows(self, audio: Waveform | Sequence[Waveform]) -> npt.NDArray[np.float32]:
        """Rows ``[n, d]`` of one mono waveform ``[L]`` at ``rate_hz``, or of several, one after the other.

        Each waveform is embedded by itself, so unequal lengths never meet in a batch.

        Raises:
            ValueError: A waveform is not mono, is not finite, or is shorter than one row needs.
        """
        clips = [audio] if isinstance(audio, Tensor | np.ndarray) else list(audio)
        if not clips:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        return np.concatenate([self._checked_rows(clip) for clip in clips])

    def _checked_rows(self, clip: Waveform) -> npt.NDArray[np.float32]:
        waveform = torch.as_tensor(clip, dtype=torch.float32)
        if waveform.dim() != 1:
            raise ValueError(f"{self.name}: expected a mono waveform [L], got shape {tuple(waveform.shape)}")
        if not bool(torch.isfinite(waveform).all()):
            raise ValueError(f"{self.name}: the waveform holds NaN or infinite samples")
        with torch.inference_mode():
            found = self.clip_rows(waveform).to("cpu", torch.float32).numpy()
        if found.ndim != 2 or found.shape[1] != self.dimensions or found.shape[0] == 0:
            raise ValueError(f"{self.name}: made rows of shape {found.shape}, expected [n, {self.dimensions}]")
        return found

    @abstractmethod
    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows ``[n, d]`` of one finite mono waveform float32 ``[L]`` at ``rate_hz``."""

    def to(self, device: torch.device | str) -> Embedding:
        """The embedding with its network on ``device``; itself where there is none to move."""
        return self


def cosine_basis(points: int, coefficients: int) -> Tensor:
    """First rows of the orthonormal DCT-II over ``points`` values: float64 ``[coefficients, points]``."""
    n = torch.arange(points, dtype=torch.float64)
    k = torch.arange(coefficients, dtype=torch.float64).unsqueeze(1)
    basis = torch.cos(math.pi / points * (n + 0.5) * k) * math.sqrt(2 / points)
    basis[0] /= math.sqrt(2)
    return basis


class LogMelEmbedding(Embedding):
    """Low 2-D cosine coefficients of VGGish's log-mel patch: 8 over time (up to 3.6 Hz) x 16 over mel = 128.

    They are divided by the square root of the patch's size, so that the first is the patch's mean and squared
    distances are in squared nats of magnitude, whatever the size.

    Args:
        framing: ``contiguous`` (0.96 s without overlap) or ``google`` (1 s every 0.5 s); see
            :mod:`hafm_lightning.evaluation.embeddings.log_mel`.
    """

    TIME_COEFFICIENTS = 8
    BAND_COEFFICIENTS = 16

    def __init__(self, framing: str = "contiguous") -> None:
        log_mel.check_framing(framing)
        dimensions = self.TIME_COEFFICIENTS * self.BAND_COEFFICIENTS
        settings = {
            "framing": framing,
            "time_coefficients": self.TIME_COEFFICIENTS,
            "band_coefficients": self.BAND_COEFFICIENTS,
            "transform": "orthonormal DCT-II of the VGGish log-mel patch / sqrt(its size)",
        }
        super().__init__("logmel", log_mel.RATE_HZ, dimensions, settings)
        self.framing = framing
        frames, bands = log_mel.PATCH_FRAMES, log_mel.BANDS
        self._over_time = (cosine_basis(frames, self.TIME_COEFFICIENTS) / math.sqrt(frames)).float()
        self._over_bands = (cosine_basis(bands, self.BAND_COEFFICIENTS) / math.sqrt(bands)).float()

    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows ``[n, 128]``; coefficient (time i, band j) is at column ``16 i + j``."""
        found = log_mel.patches(waveform, self.framing)  # [n, 96, 64]
        return (self._over_time @ found @ self._over_bands.T).flatten(1)


EMBEDDINGS = ("logmel", "vggish", "clap", "encodec", "hubert")


@dataclass(frozen=True)
class EmbeddingSource:
    """Which embedding to load, as a configuration names it. Keys that do not apply to the named one must stay unset.

    Attributes:
        name: One of :data:`EMBEDDINGS`.
        weights: Local file or ``hf://OWNER/NAME/PATH`` (``vggish``), local folder or Hub id (the others); None for the
            published model.
        sha256: Expected sha256 of the weights file; another file is refused.
        revision: Commit of the Hub repository.
        framing: ``contiguous`` or ``google``, for ``logmel`` and ``vggish``.
        window_s: Seconds a row covers, for ``clap``, ``encodec`` and ``hubert``.
        layer: Hidden layer, for ``hubert``.
    """

    name: str = "logmel"
    weights: str | None = None
    sha256: str | None = None
    revision: str | None = None
    framing: str | None = None
    window_s: float | None = None
    layer: int | None = None


_KEYS: Mapping[str, tuple[str, ...]] = {
    "logmel": ("framing",),
    "vggish": ("weights", "sha256", "framing"),
    "clap": ("weights", "sha256", "revision", "window_s"),
    "encodec": ("weights", "sha256", "revision", "window_s"),
    "hubert": ("weights", "sha256", "revision", "window_s", "layer"),
}


def load_embedding(source: EmbeddingSource) -> Embedding:
    """Build the embedding that ``source`` names.

    Raises:
        RequestError: Unknown name, a key that the named embedding does not have, or weights that cannot be had.
    """
    if source.name not in _KEYS:
        raise RequestError(f"unknown embedding {source.name!r}; choose one of {', '.join(EMBEDDINGS)}")
    given = {key: value for key, value in asdict(source).items() if key != "name" and value is not None}
    foreign = sorted(set(given) - set(_KEYS[source.name]))
    if foreign:
        raise RequestError(
            f"embedding {source.name!r} does not take {', '.join(foreign)}; it takes {', '.join(_KEYS[source.name])}"
        )
    if source.name == "logmel":
        return LogMelEmbedding(**given)
    if source.name == "vggish":
        from hafm_lightning.evaluation.embeddings.vggish import VGGishEmbedding

        return VGGishEmbedding(**given)
    from hafm_lightning.evaluation.embeddings.hub import ClapEmbedding, EncodecEmbedding, HubertEmbedding

    if "weights" in given:
        given["source"] = given.pop("weights")
    classes: dict[str, type[Embedding]] = {
        "clap": ClapEmbedding,
        "encodec": EncodecEmbedding,
        "hubert": HubertEmbedding,
    }
    return classes[source.name](**given)
