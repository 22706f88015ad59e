"""The state of one vocal while :class:`~hafm_lightning.accompanist.band.Accompanist` works through its windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.accompanist.windows import GRID_S, Window, covering_units, frames_at, plan_windows
from hafm_lightning.audio import Audio, read_audio, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.tokens import TokenStream

Vocal = str | Path | Audio
"""A file, or sound in memory."""
Progress = Callable[[float], None]
"""Receives the share of the work that is done, 0 to 1. It may raise, which cancels."""

SILENCE_PEAK = 1e-4
"""A vocal that stays below this (-80 dBFS) is refused as silence."""


@dataclass
class Song:
    """A vocal, its windows, and the tokens written so far."""

    vocal: Audio
    source: dict[str, Any]  # of the vocal, for `take.json`
    seed: int
    windows: list[Window]
    total: int  # grid units
    written: dict[str, Tensor] = field(default_factory=dict)  # stream -> ids [K, T so far], at most `total`
    _resampled: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, vocal: Vocal, seed: int, window: int, overlap: int, right_context: int) -> Song:
        """Plan the windows of a vocal, in grid units; RequestError if it is unreadable, empty, silent or holds NaN."""
        if isinstance(vocal, Audio):
            audio, name, path = vocal, "the vocal", None
            header = json.dumps([vocal.rate_hz, list(vocal.samples.shape)]).encode()
            digest = hashlib.sha256(header + np.ascontiguousarray(vocal.samples).tobytes()).hexdigest()
        else:
            audio, name, path = read_audio(vocal), str(vocal), str(Path(vocal).resolve())
            digest = sha256_of(Path(vocal))
        if not audio.samples.shape[1]:
            raise RequestError(f"{name}: holds no audio (0 samples)")
        if not np.isfinite(audio.samples).all():
            raise RequestError(f"{name}: holds NaN or infinite samples; export it again from its source")
        if float(np.abs(audio.samples).max()) < SILENCE_PEAK:
            raise RequestError(f"{name}: is silent; there is nothing to accompany")
        total = covering_units(audio.samples.shape[1], audio.rate_hz)
        source = {"path": path, "sha256": digest, "seconds": audio.duration_s, "rate_hz": audio.rate_hz}
        return cls(audio, source, seed, plan_windows(total, window, overlap, right_context), total)

    def cut(self, window: Window, length: int, rate_hz: int) -> Tensor:
        """The vocal's window, mono ``[L]`` at ``rate_hz``; silence after its end."""
        if rate_hz not in self._resampled:
            mono = self.vocal.mono().samples[0]
            self._resampled[rate_hz] = torch.from_numpy(resample(mono, self.vocal.rate_hz, rate_hz))
        start, samples = int(window.start * GRID_S * rate_hz), int(length * GRID_S * rate_hz)
        clip = self._resampled[rate_hz][start : start + samples]
        return F.pad(clip, (0, samples - len(clip)))

    def prefix(self, stream: TokenStream, window: Window) -> Tensor:
        """Ids ``[K, T0]`` already written for the window's beginning."""
        start = frames_at(stream, window.start)
        return self.written[stream.name][:, start : start + frames_at(stream, window.prefix)]

    def append(self, stream: TokenStream, window: Window, ids: Tensor) -> None:
        """Add a window's ids ``[K, T]`` from the end of its prefix to the end of its kept part."""
        first, last = frames_at(stream, window.prefix), frames_at(stream, min(window.keep, self.total - window.start))
        before = self.written.get(stream.name, ids[:, :0])
        self.written[stream.name] = torch.cat((before, ids[:, first:last]), dim=1)


@dataclass
class ShareCounter:
    """Reports the share of the work that is done; ``total`` stages write a window each."""

    total: int
    report: Progress | None
    done: int = 0

    def within(self, prefix: int, frames: int) -> Callable[[int], None] | None:
        """A callback for the frames that the present stage writes after ``prefix``."""
        report = self.report
        if report is None:
            return None
        return lambda frame: report((self.done + max(0, frame - prefix) / max(1, frames - prefix)) / self.total)

    def next(self, songs: int) -> None:
        """Count one stage of one window of ``songs`` songs as done."""
        self.done += songs
        if self.report is not None:
            self.report(self.done / self.total)
