"""One vocal: reading it, what tokenizers hear of it, and its state while an Accompanist works through its windows.

Choices:

* A clip that the vocal does not fill goes on with the vocal's own sound, mirrored (:func:`surroundings`). A semantic
  encoder normalises over the whole clip, so digital silence would change the tokens of the sung part as well.
* Training adds noise to the vocal before the semantic tokenizer; generation adds noise of the same strength, a
  function of (seed, position), so that overlapping windows and live sessions hear the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hafm_lightning import limits
from hafm_lightning.accompanist.windows import GRID_S, Window, covering_units, frames_at, plan_windows
from hafm_lightning.audio import Audio, Samples, read_audio, resample
from hafm_lightning.audio.sound import cancelling, warn_of_cancellation
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.tokens import TokenStream

Progress = Callable[[float], None]
"""Receives the share of the work that is done, 0 to 1. It may raise, which cancels."""

SILENCE_PEAK = 1e-4
"""A vocal that stays below this (-80 dBFS) is refused as silence."""


LOUDEST_NOISE = 1 / 20
"""Noise of ``auto`` is at most this share of the vocal's peak: a soft recording must not drown in it."""
NOISE_AUTO: Final = "auto"

VocalNoise = float | Literal["auto"]
"""Standard deviation of the noise on the vocal, full scale is 1; ``auto`` is that of the stages' training."""


@dataclass(frozen=True)
class LoadedVocal:
    """A vocal in memory, checked, and its source for `take.json`."""

    audio: Audio
    source: Mapping[str, Any]


Array = npt.NDArray[Any] | Tensor
Vocal = str | Path | Audio | LoadedVocal | Array
"""A file, sound in memory, or an array ``[L]`` or ``[channels, L]`` with its sample rate."""


def load_vocal(vocal: Vocal, rate_hz: int | None = None) -> LoadedVocal:
    """Read and check a vocal; ``rate_hz`` belongs to an array.

    Raises:
        RequestError: The vocal is missing, unreadable, empty, silent or holds NaN, or is no sound at all.
    """
    if isinstance(vocal, np.ndarray | Tensor):
        vocal = audio_of_array(vocal, rate_hz)
    elif rate_hz is not None:
        raise RequestError("rate_hz is for arrays; a file or an Audio has a sample rate of its own")
    if isinstance(vocal, LoadedVocal):
        return vocal
    if isinstance(vocal, Audio):
        audio, name, path = vocal, "the vocal", None
        header = json.dumps([vocal.rate_hz, list(vocal.samples.shape)]).encode()
        digest = hashlib.sha256(header + np.ascontiguousarray(vocal.samples).tobytes()).hexdigest()
    elif isinstance(vocal, str | Path):
        audio, name, path = read_audio(vocal), str(vocal), str(Path(vocal).resolve())
        digest = sha256_of(Path(vocal))
    else:
        raise RequestError(
            f"a vocal is a file, an Audio, or an array with its sample rate (rate_hz=44100), not a "
            f"{type(vocal).__name__}"
        )
    if not audio.samples.shape[1]:
        raise RequestError(f"{name}: holds no audio (0 samples)")
    if not np.isfinite(audio.samples).all():
        raise RequestError(f"{name}: holds NaN or infinite samples; export it again from its source")
    if float(np.abs(audio.samples).max()) < SILENCE_PEAK:
        raise RequestError(f"{name}: is silent; there is nothing to accompany")
    channel = cancelling(audio.samples, audio.rate_hz)
    if channel is not None:  # models, measures and the mix hear the same
        warn_of_cancellation(name, channel)
        audio = Audio(audio.samples[channel : channel + 1], audio.rate_hz)
    source = {"path": path, "sha256": digest, "seconds": audio.duration_s, "rate_hz": audio.rate_hz}
    return LoadedVocal(audio, source)


def audio_of_array(array: Array, rate_hz: int | None) -> Audio:
    """An array of numpy or torch as sound: ``[L]`` or ``[channels, L]``, floating-point or PCM integers.

    RequestError for another shape or type, or without a sample rate.
    """
    allowed = limits.current()
    if isinstance(array, Tensor):
        array = (array.detach().float() if array.is_floating_point() else array.detach()).cpu().numpy()
    if rate_hz is None:
        raise RequestError("an array needs its sample rate: accompany(samples, rate_hz=44100)")
    if (
        isinstance(rate_hz, bool)
        or not isinstance(rate_hz, int | np.integer)
        or not (allowed.audio_min_rate_hz <= rate_hz <= allowed.audio_max_rate_hz)
    ):
        bounds = f"from {allowed.audio_min_rate_hz} to {allowed.audio_max_rate_hz} Hz"
        raise RequestError(f"rate_hz must be a whole number {bounds}, got {rate_hz!r}")
    if array.ndim not in (1, 2):
        raise RequestError(f"samples must be [L] or [channels, L], got shape {list(array.shape)}")
    samples = array[None] if array.ndim == 1 else array
    if not 1 <= samples.shape[0] <= allowed.audio_channels:
        advice = "; transpose it: samples.T" if samples.shape[1] <= allowed.audio_channels else ""
        raise RequestError(f"samples must be [channels, L], got shape {list(array.shape)}{advice}")
    if samples.dtype.kind == "f":
        scaled = samples
    elif samples.dtype in (np.int16, np.int32):
        scaled = samples / np.float64(1 << (8 * samples.dtype.itemsize - 1))
    else:
        raise RequestError(f"samples must be floating-point, int16 or int32, got {samples.dtype}")
    return Audio(np.ascontiguousarray(scaled, dtype=np.float32), int(rate_hz))


def surroundings(samples: Samples, length: int, *, before: bool = False) -> Samples:
    """Sound ``[..., L]`` as a clip of ``length`` samples, where no more of it is known: it goes on mirrored.

    A longer sound is cut. ``before`` puts the added sound before it. The same rule holds for generation, for the
    evaluation's clips, and for the music in training.
    """
    present = samples.shape[-1]
    if present >= length or not present:
        cut = samples[..., present - min(present, length) :] if before else samples[..., :length]
        missing = length - cut.shape[-1]
        return np.pad(cut, [(0, 0)] * (samples.ndim - 1) + [(missing, 0) if before else (0, missing)])
    added = (length - present, 0) if before else (0, length - present)
    return np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [added], mode="symmetric")


def noise(seed: int, start: int, units: int, rate_hz: int) -> Samples:
    """Gaussian noise ``[L]`` of variance 1 for ``units`` grid units from unit ``start``, the same for every cut."""
    key = np.frombuffer(hashlib.sha256(f"noise/{seed}".encode()).digest()[:8], np.uint64)[0]
    length = int(GRID_S * rate_hz)
    parts = []
    for unit in range(start, start + units):
        generator = np.random.Generator(np.random.Philox(key=np.array([key, unit % (1 << 64)], np.uint64)))
        parts.append(generator.standard_normal(length, dtype=np.float32))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def noise_sigma(setting: VocalNoise, trained: float, peak: float | None = None) -> float:
    """The noise's standard deviation: a number as it is; ``auto`` as in training, less for a soft vocal.

    Args:
        setting: ``auto`` or a number.
        trained: Noise of the stages' training; 0 if it is not known.
        peak: Peak of the vocal; None if it is not known yet.

    RequestError for a setting out of range.
    """
    if setting == NOISE_AUTO:
        return trained if peak is None else min(trained, LOUDEST_NOISE * peak)
    if isinstance(setting, bool) or not isinstance(setting, int | float) or not 0 <= setting <= 1:
        raise RequestError(f"vocal_noise must be auto, or a number from 0 to 1, got {setting!r}")
    return float(setting)


@dataclass
class Song:
    """A vocal, its windows, and the tokens written so far."""

    vocal: Audio
    source: Mapping[str, Any]  # of the vocal, for `take.json`
    seed: int
    windows: list[Window]
    total: int  # grid units
    noise_sigma: float = 0.0
    written: dict[str, Tensor] = field(default_factory=dict)  # stream -> ids [K, T so far], at most `total`
    _resampled: dict[int, Samples] = field(default_factory=dict)

    @classmethod
    def of(
        cls, vocal: Vocal, seed: int, window: int, overlap: int, right_context: int, noise_sigma: float = 0.0
    ) -> Song:
        """Plan the windows of a vocal, in grid units; RequestError as :func:`load_vocal`."""
        loaded = load_vocal(vocal)
        total = covering_units(loaded.audio.samples.shape[1], loaded.audio.rate_hz)
        windows = plan_windows(total, window, overlap, right_context)
        return cls(loaded.audio, loaded.source, seed, windows, total, noise_sigma)

    def cut(self, window: Window, length: int, rate_hz: int, noisy: bool = False) -> Tensor:
        """The vocal's window of ``length`` grid units, mono ``[L]`` at ``rate_hz``, with noise if ``noisy``."""
        if rate_hz not in self._resampled:
            mono = self.vocal.mono().samples[0]
            units = max(self.total, max(each.start for each in self.windows) + length)
            whole = resample(mono, self.vocal.rate_hz, rate_hz)
            self._resampled[rate_hz] = surroundings(whole, int(units * GRID_S * rate_hz))
        start, samples = int(window.start * GRID_S * rate_hz), int(length * GRID_S * rate_hz)
        clip = self._resampled[rate_hz][start : start + samples]
        if noisy and self.noise_sigma:
            clip = clip + np.float32(self.noise_sigma) * noise(self.seed, window.start, length, rate_hz)
        return torch.from_numpy(np.array(clip, dtype=np.float32))

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
