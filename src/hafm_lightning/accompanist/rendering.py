"""Acoustic tokens to one long waveform, a stretch at a time, without audible joints.

Each stretch is decoded with earlier frames as context, and fades into the next over :data:`FADE_S`. The fade keeps the
loudness whether the two decodings agree sample by sample (EnCodec, whose decoder is causal) or only in their spectrum
(Griffin-Lim, whose phases differ), since it follows from their measured correlation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hafm_lightning.audio import Samples
from hafm_lightning.tokenizers import AcousticTokenizer

STRETCH_S = 20.0
"""Length of a stretch of a whole song; it bounds memory."""
CONTEXT_S = 1.0
"""Length of the earlier frames that are decoded again with each stretch."""
FADE_S = 0.08
"""Length of the fade between two stretches; the newest sound waits as long for the next one."""


class Renderer:
    """Turns frames into sound, piece after piece; each push decodes ``context_s`` of earlier frames again."""

    def __init__(self, acoustic: AcousticTokenizer, context_s: float = CONTEXT_S) -> None:
        self._acoustic = acoustic
        rate_hz, self._hop = acoustic.identity.rate_hz, acoustic.identity.hop
        self.context_frames, self.fade_frames = round(context_s * rate_hz), round(FADE_S * rate_hz)
        self._codes: Tensor | None = None  # [K, n]: the context and the frames whose sound waits
        self._emitted = 0  # of these, frames whose sound has been returned
        self._tail: Samples = np.zeros(0, np.float32)  # sound of the waiting frames, as decoded by the last push

    def push(self, codes: Tensor, *, last: bool = False) -> Samples:
        """Add frames ``[K, n]``; the sound ``[L]`` of all but the newest ``fade_frames``, with ``last`` of all."""
        if self._codes is not None:
            codes = torch.cat((self._codes, codes), dim=1)
        frames = codes.shape[1]
        if frames == self._emitted:
            return np.zeros(0, np.float32)
        waiting = 0 if last else min(self.fade_frames, frames - self._emitted)
        sound = self._acoustic.decode(codes[None])[0].float().cpu().numpy()[self._emitted * self._hop :]
        if len(self._tail):
            sound[: len(self._tail)] = crossfade(self._tail, sound[: len(self._tail)])
        ready = len(sound) - waiting * self._hop
        self._tail = sound[ready:].copy()
        emitted = frames - waiting
        first = max(0, emitted - self.context_frames)
        self._codes, self._emitted = codes[:, first:], emitted - first
        return sound[:ready]


def render(acoustic: AcousticTokenizer, codes: Tensor, stretch_s: float = STRETCH_S) -> Samples:
    """The whole sound of codes ``[K, T]``: float32 ``[T * hop]``."""
    renderer, stretch = Renderer(acoustic), round(stretch_s * acoustic.identity.rate_hz)
    parts = [
        renderer.push(codes[:, start : start + stretch], last=start + stretch >= codes.shape[1])
        for start in range(0, codes.shape[1], stretch)
    ]
    return np.concatenate(parts)


def crossfade(old: Samples, new: Samples) -> Samples:
    """From ``old [L]`` to ``new [L]`` at constant loudness, whatever their correlation."""
    rise = (np.arange(len(old), dtype=np.float64) + 0.5) / len(old)
    energy = float(np.sqrt(np.square(old, dtype=np.float64).sum() * np.square(new, dtype=np.float64).sum()))
    correlation = float(np.dot(old.astype(np.float64), new.astype(np.float64))) / energy if energy else 1.0
    level = np.sqrt(rise**2 + (1 - rise) ** 2 + 2 * max(0.0, correlation) * rise * (1 - rise))
    return ((1 - rise) / level * old + rise / level * new).astype(np.float32)
