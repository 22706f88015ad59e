"""What an embedding is: audio -> rows ``[n, d]`` that Frechet and kernel distances compare.

An :class:`Embedding` states its sample rate, the width of its rows and an *identity*: a sha256 over everything that
changes a row (weights, layer, framing, level, settings). The identity goes into every statistics file and every card,
and two sets of different identities are never compared.

Levels: embeddings hear loudness. With ``logmel`` the same music 6 dB softer is further away than another song. So
:func:`~hafm_lightning.evaluation.embeddings.load_embedding` brings every clip to one loudness, unless the framing is
Google's, whose program divides by the peak, or the levels are asked for as recorded.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hafm_lightning.audio import Audio, loudness_lufs
from hafm_lightning.evaluation.distances.frechet import IDENTITY_KEY

Waveform = Tensor | npt.NDArray[np.float32]

LEVELS = ("loudness", "peak", "recorded")
"""``loudness``: every clip at :data:`LOUDNESS_LUFS`; ``peak``: divided by its peak, or by 0.1 where the peak is less,
as Google's FAD program does; ``recorded``: as it is."""
LOUDNESS_LUFS = -20.0
"""Of ITU-R BS.1770; also the level of APA's mixes."""
LEAST_PEAK = 0.1


class Embedding(ABC):
    """Rows for waveforms. Subclasses implement :meth:`clip_rows`.

    Args:
        name: Label on cards and in logs, e.g. ``vggish``.
        rate_hz: Sample rate that :meth:`rows` expects.
        dimensions: Width ``d`` of a row.
        settings: Everything that changes a row, as JSON values (weights' sha256, layer, framing, window).
        source: Where the weights came from, for people to read; not part of the identity.
        network: In eval mode, frozen here; None for an embedding without one.
        level: One of :data:`LEVELS`.
    """

    def __init__(
        self,
        name: str,
        rate_hz: int,
        dimensions: int,
        settings: Mapping[str, Any],
        source: str = "",
        network: nn.Module | None = None,
        level: str = "recorded",
    ) -> None:
        self.name, self.rate_hz, self.dimensions = name, rate_hz, dimensions
        self.settings, self.source = dict(settings), source
        self.level = level
        self.network: Any = None if network is None else network.requires_grad_(False)

    @property
    def identity(self) -> str:
        """``name:`` and the sha256 of the name, rate, width, settings and level."""
        level = {} if self.level == "recorded" else {"level": level_text(self.level)}
        text = json.dumps([self.name, self.rate_hz, self.dimensions, {**self.settings, **level}], sort_keys=True)
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()}"

    def provenance(self, **more: Any) -> dict[str, Any]:
        """This embedding's facts for a statistics file, with ``more`` (set, clips, seconds a clip) added."""
        facts = {name: getattr(self, name) for name in ("rate_hz", "dimensions", "settings", "source")}
        level = level_text(self.level)
        return {IDENTITY_KEY: self.identity, "embedding": self.name, **facts, "level": level, **more}

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
        waveform = at_level(waveform, self.rate_hz, self.level)
        with torch.inference_mode():
            return self.clip_rows(waveform).to("cpu", torch.float32).numpy()

    @abstractmethod
    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows ``[n, d]`` of one finite mono waveform float32 ``[L]`` at ``rate_hz``."""

    def to(self, device: torch.device | str) -> Embedding:
        """The embedding with its network, where it has one, on ``device`` (in place)."""
        if self.network is not None:
            self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The network's device."""
        device: torch.device = next(self.network.parameters()).device
        return device


def at_level(waveform: Tensor, rate_hz: int, level: str) -> Tensor:
    """The waveform ``[L]`` at one of :data:`LEVELS`; silence stays silence. Peaks may pass full scale."""
    if level == "peak":
        return waveform / max(LEAST_PEAK, float(waveform.abs().max()) if len(waveform) else 0.0)
    if level == "loudness":
        own_lufs = loudness_lufs(Audio(waveform[None].cpu().numpy(), rate_hz))
        return waveform * 10 ** ((LOUDNESS_LUFS - own_lufs) / 20) if math.isfinite(own_lufs) else waveform
    return waveform


def level_text(level: str) -> str:
    """A level as the card prints it."""
    texts = {"loudness": f"{LOUDNESS_LUFS:g} LUFS", "peak": f"divided by max({LEAST_PEAK:g}, peak)"}
    return texts.get(level, "as recorded")
