"""Accompaniment during the performance: blocks of vocal in, blocks of accompaniment out, after a known look-ahead.

It needs stages with ``aligned`` conditions, whose tokens depend on a known length of the vocal ahead. After each
:attr:`LiveOptions.hop_s` of vocal:

1. the newest :attr:`LiveOptions.listen_s` of vocal, or the part on which the new tokens can depend, is tokenized as one
   clip; tokens of the last :attr:`LiveOptions.edge_s` wait, since later sound changes their features;
2. each stage writes as far as its conditions allow. Its window rolls as for a long vocal: the last half of the tokens
   is the prefix of the next window. A non-autoregressive stage fills the new frames, with the keys and values of
   earlier ones as context;
3. the new frames are decoded and faded into the earlier sound.

Only these contexts are computed twice, so that a hop costs the same after a minute and after hours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hafm_lightning.accompanist.live_tracks import FilledTrack, Ids, LiveOptions, NewestIds, Track, WrittenTrack
from hafm_lightning.accompanist.rendering import FADE_S, Renderer
from hafm_lightning.accompanist.song import noise, surroundings
from hafm_lightning.accompanist.stage_network import StageNetwork, condition_names, vocal_streams
from hafm_lightning.accompanist.windows import GRID_S, covering_units, frames_at, grid_units
from hafm_lightning.audio import PEAK_LIMIT_DBTP, Audio, Samples, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import Tokenizer
from hafm_lightning.tokens import INSTRUMENTAL_COARSE, INSTRUMENTAL_FINE, STYLE, VOCAL_SEMANTIC, TokenStream


class LiveSession:
    """One performance, with ``window`` in grid units. Made by :meth:`Accompanist.live_session`."""

    def __init__(
        self,
        networks: Sequence[StageNetwork],
        tokenizers: Tokenizers,
        options: SamplingOptions,
        live: LiveOptions,
        seed: int,
        window: int,
        style_id: int,
        noise_sigma: float = 0.0,
    ) -> None:
        self._tracks: list[Track] = []
        for network in networks:
            if network.model.layout.conditioning != "aligned":
                raise RequestError(
                    f"{network.name} reads the whole vocal before it begins (conditioning 'prefix'); live "
                    "accompaniment needs stages trained with conditioning 'aligned'"
                )
            kind = FilledTrack if network.model.layout.pattern == "nonautoregressive" else WrittenTrack
            self._tracks.append(kind(network, options, live, seed, window))
        self._tokenizers = [
            _IncrementalTokenizer(stream, tokenizer, live, seed, noise_sigma * (stream.name == VOCAL_SEMANTIC.name))
            for stream, tokenizer in vocal_streams(networks, tokenizers)
        ]
        self._streams: dict[str, Ids] = {}
        self._window = max(window, grid_units(live.listen_s))  # no part of a stream is read again after it
        if STYLE.name in condition_names(networks):
            self._streams[STYLE.name] = torch.full((1, 1), style_id)
        self._hop, self._edge = grid_units(live.hop_s), grid_units(live.edge_s)
        self.sample_rate_hz = tokenizers.acoustic.identity.sample_rate_hz
        """Rate of the accompaniment."""
        self._renderer = Renderer(tokenizers.acoustic, context_s=live.sound_context_s)
        self._limiter = _Limiter()
        self._vocal = _VocalBuffer(units=grid_units(live.listen_s) + self._hop)
        self._processed = 0  # grid units of the vocal
        self._rendered = 0  # acoustic frames
        self._emitted = 0  # samples of accompaniment
        self._finished = False

    @property
    def look_ahead_s(self) -> float:
        """Seconds of vocal after the end of a sound that must be pushed before that sound is returned.

        This latency, without the time of computing, is the hop, the tokens' edge, the stages' look-aheads (with the
        frames that the delay pattern writes late), and the sound that waits for the next fade.
        """
        stages = sum(track.look_ahead for track in self._tracks)
        return float((self._hop + self._edge + stages) * GRID_S) + FADE_S

    def push(self, block: Audio) -> Iterator[Audio]:
        """Add the next piece of the vocal; yields the accompaniment that is ready. RequestError: see `stream`."""
        if self._finished:
            raise ValueError("the session is finished; start another one")
        self._vocal.add(block)
        while self._vocal.end_unit - self._processed >= self._hop:
            self._processed += self._hop
            yield from self._step()

    def finish(self) -> Iterator[Audio]:
        """End the vocal; yields the rest, up to exactly the vocal's length."""
        if self._finished or not self._vocal.rate_hz:
            return
        self._finished = True
        total = round(self._vocal.samples * self.sample_rate_hz / self._vocal.rate_hz)
        while self._emitted < total:
            self._processed += self._hop
            self._vocal.extend_to(self._processed)
            yield from self._step(total - self._emitted)

    def _step(self, most: int | None = None) -> Iterator[Audio]:
        """All accompaniment that the vocal up to ``_processed`` allows, ``most`` samples at most."""
        for tokenizer in self._tokenizers:
            self._append(tokenizer.stream, tokenizer.encode(self._vocal, self._processed))
        for track in self._tracks:
            self._append(track.target, track.write(self._streams))
        acoustic = (INSTRUMENTAL_COARSE.name, INSTRUMENTAL_FINE.name)
        names = [name for name in acoustic if name in self._streams]
        frames = min(self._streams[name].shape[1] for name in names)
        if frames <= self._rendered:
            return
        codes = torch.cat([self._streams[name][:, self._rendered : frames] for name in names])
        self._rendered = frames
        sound = self._limiter(self._renderer.push(codes))[:most]
        self._emitted += len(sound)
        if len(sound):
            yield Audio(sound[None], self.sample_rate_hz)

    def _append(self, stream: TokenStream, ids: Tensor) -> None:
        """Add new ids ``[K, n]`` to a stream."""
        known = self._streams.setdefault(stream.name, NewestIds(stream, self._window))
        if isinstance(known, NewestIds):
            known.write(known.shape[1], ids)


class _VocalBuffer:
    """The newest ``units`` grid units of the vocal, at its own rate."""

    def __init__(self, units: int) -> None:
        self.rate_hz = 0  # until the first block
        self.samples = 0  # of the whole vocal, without what is added at its end
        self._units = units
        self._newest: Samples = np.zeros(0, np.float32)
        self._first = 0  # sample of the vocal at which `_newest` begins

    @property
    def end_unit(self) -> int:
        """Complete grid units of vocal since the beginning."""
        return int((self._first + len(self._newest)) / (self.rate_hz * GRID_S)) if self.rate_hz else 0

    def add(self, block: Audio) -> None:
        """Append a block."""
        if self.rate_hz not in (0, block.rate_hz):
            raise RequestError(f"a block at {block.rate_hz} Hz came after blocks at {self.rate_hz} Hz; resample one")
        if not np.isfinite(block.samples).all():
            raise RequestError("a block holds NaN or infinite samples")
        self.rate_hz = block.rate_hz
        self.samples += block.samples.shape[1]
        self._extend(block.mono().samples[0])

    def extend_to(self, unit: int) -> None:
        """Let the vocal go on mirrored up to a grid unit."""
        known = len(self._newest)
        self._extend(surroundings(self._newest, max(known, self._sample(unit) - self._first))[known:])

    def _extend(self, samples: Samples) -> None:
        self._newest = np.concatenate((self._newest, samples))
        surplus = max(0, len(self._newest) - self._sample(self._units) - len(samples))
        self._newest, self._first = self._newest[surplus:], self._first + surplus

    def _sample(self, unit: int) -> int:
        return round(unit * GRID_S * self.rate_hz)

    def clip(self, end: int, length: int, rate_hz: int) -> Tensor:
        """Mono ``[L]`` of ``length`` units up to unit ``end``; before the vocal's beginning its mirrored sound."""
        start, stop = self._sample(end - length) - self._first, self._sample(end) - self._first
        clip = surroundings(self._newest[max(0, start) : stop], stop - start, before=True)
        wanted = int(length * GRID_S * rate_hz)
        converted = resample(clip, self.rate_hz, rate_hz)[:wanted]
        return torch.from_numpy(np.pad(converted, (0, wanted - len(converted))))


class _IncrementalTokenizer:
    """Tokens of a growing vocal: each call encodes the new part, with its context."""

    def __init__(
        self, stream: TokenStream, tokenizer: Tokenizer, live: LiveOptions, seed: int, noise_sigma: float
    ) -> None:
        self.stream = stream
        self._seed, self._noise_sigma = seed, noise_sigma
        self._tokenizer = tokenizer
        self._longest, self._edge = grid_units(live.listen_s), grid_units(live.edge_s)
        context_s = tokenizer.context_s
        # one unit more, since a clip's beginning is resampled as if silence came before it
        self._context = None if context_s is None else covering_units(round(context_s * 1000), 1000) + 1
        self._done = 0  # grid units that are tokenized

    def encode(self, vocal: _VocalBuffer, end: int) -> Tensor:
        """Ids ``[K, n]`` of the part that is new when the vocal has reached unit ``end``."""
        done = max(0, end - self._edge)
        length = self._longest
        if self._context is not None:
            length = min(length, end - self._done + self._context)
        rate_hz = self._tokenizer.identity.sample_rate_hz
        clip = vocal.clip(end, length, rate_hz)
        if self._noise_sigma:
            clip = clip + self._noise_sigma * torch.from_numpy(noise(self._seed, end - length, length, rate_hz))
        ids = self._tokenizer.encode(clip[None])[0].cpu()
        first, last = (frames_at(self.stream, length - (end - unit)) for unit in (self._done, done))
        self._done = done
        return ids[:, first:last]


class _Limiter:
    """Keeps samples below the ceiling: turns down as soon as needed, and up again slowly."""

    _ceiling = 10 ** (PEAK_LIMIT_DBTP / 20)
    _gain = 1.0

    def __call__(self, sound: Samples) -> Samples:
        """The next piece ``[L]``."""
        peak = float(np.abs(sound).max(initial=0.0))
        before, self._gain = self._gain, min(1.0, self._gain * 1.05, self._ceiling / peak if peak else 1.0)
        ramp = np.linspace(before, self._gain, len(sound), dtype=np.float32)
        limited: Samples = np.clip(sound * ramp, -self._ceiling, self._ceiling).astype(np.float32)
        return limited
