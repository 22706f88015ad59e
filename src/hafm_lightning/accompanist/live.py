"""Accompanying while the singer sings: blocks of vocal in, blocks of accompaniment out, after a stated look-ahead.

It works with stages whose conditions are ``aligned``, which hear the vocal up to a stated look-ahead and nothing
beyond. Each time :attr:`LiveOptions.hop_s` of vocal has come in:

1. the newest :attr:`LiveOptions.listen_s` of vocal are tokenized as one clip, or as much of them as the new tokens can
   depend on; the tokens of the new part are taken, less :attr:`LiveOptions.edge_s` at the end, whose features would
   change with what follows;
2. each stage writes as far as the tokens it hears allow. Its window rolls as in long form: the last half of what is
   written begins the next window. A non-autoregressive stage fills the new frames beside the keys and values that it
   keeps of earlier ones;
3. the new frames are decoded and faded into what sounded before.

Nothing is computed twice except these contexts, and a session that goes on for hours computes as much for each hop as
one of a minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hafm_lightning.accompanist.live_tracks import FilledTrack, LiveOptions, SeedOf, Track, WrittenTrack
from hafm_lightning.accompanist.rendering import FADE_S, Renderer
from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.accompanist.windows import GRID_S, covering_units, frames_at, grid_units
from hafm_lightning.audio import PEAK_LIMIT_DBTP, Audio, Samples, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokenizers import AcousticTokenizer, SemanticTokenizer, Tokenizers
from hafm_lightning.tokens import (
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    STYLE,
    VOCAL_ACOUSTIC,
    VOCAL_SEMANTIC,
    TokenStream,
)


class LiveSession:
    """One performance. Made by :meth:`Accompanist.live_session`.

    Args:
        networks: The stages in order.
        tokenizers: Their tokenizers.
        options: Guidance and sampling.
        live: Sizes of the steps.
        seed_of: Seed of a stage's window.
        window: Length of the stages' windows, in grid units.
        style_id: Id of the style, or NULL.

    Raises:
        RequestError: A stage holds its conditions in a prefix.
    """

    def __init__(
        self,
        networks: Sequence[StageNetwork],
        tokenizers: Tokenizers,
        options: SamplingOptions,
        live: LiveOptions,
        seed_of: SeedOf,
        window: int,
        style_id: int,
    ) -> None:
        for network in networks:
            if network.model.layout.conditioning != "aligned":
                raise RequestError(
                    f"the {network.role} stage ({network.source}) reads the whole vocal before it begins (conditioning "
                    "'prefix'); live accompaniment needs stages trained with conditioning 'aligned'"
                )
        self._tracks: list[Track] = []
        for network in networks:
            kind = FilledTrack if network.model.layout.pattern == "nonautoregressive" else WrittenTrack
            self._tracks.append(kind(network, options, live, seed_of, window))
        needed = {stream.name for network in networks for stream in network.model.layout.conditions}
        self._ears = [
            _Ear(stream, tokenizer, live)
            for stream, tokenizer in (
                (VOCAL_SEMANTIC, tokenizers.semantic),
                (VOCAL_ACOUSTIC, tokenizers.acoustic),
            )
            if stream.name in needed
        ]
        self._streams: dict[str, Tensor] = {STYLE.name: torch.full((1, 1), style_id)} if STYLE.name in needed else {}
        self._hop = grid_units(live.hop_s)
        self._edge = grid_units(live.edge_s)
        self._acoustic = tokenizers.acoustic
        self._renderer = Renderer(tokenizers.acoustic, context_s=live.sound_context_s)
        self._limiter = _Limiter()
        self._sung = _Sung(keep_units=grid_units(live.listen_s) + self._hop)
        self._heard = 0  # grid units that have been processed
        self._rendered = 0  # acoustic frames given to the renderer
        self._given_out = 0  # samples
        self._finished = False

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the accompaniment."""
        return self._acoustic.identity.sample_rate_hz

    @property
    def look_ahead_s(self) -> float:
        """How much later than a sound's end the vocal must have come in for that sound to be given out, in seconds.

        This is the latency, were computing free: the hop, the tokens' edge, what the stages hear ahead, the frames
        that the delay pattern writes late, and the sound held back for the next fade.
        """
        stages = sum(track.look_ahead for track in self._tracks)
        return float((self._hop + self._edge + stages) * GRID_S) + FADE_S

    def push(self, block: Audio) -> Iterator[Audio]:
        """Take in the next piece of the vocal; gives out what has become ready.

        Raises:
            RequestError: The block's rate differs from the first one's, or it holds NaN.
        """
        if self._finished:
            raise ValueError("the session is finished; begin another one")
        self._sung.add(block)
        while self._sung.units - self._heard >= self._hop:
            self._heard += self._hop
            yield from self._step()

    def finish(self) -> Iterator[Audio]:
        """End the vocal; gives out the rest, up to exactly the vocal's length."""
        if self._finished or not self._sung.rate_hz:
            return
        self._finished = True
        total = round(self._sung.samples * self.sample_rate_hz / self._sung.rate_hz)
        while self._given_out < total:
            self._heard += self._hop
            self._sung.extend_to(self._heard)
            for piece in self._step():
                left = total - self._given_out + piece.samples.shape[1]
                if left < piece.samples.shape[1]:
                    piece = Audio(np.ascontiguousarray(piece.samples[:, :left]), piece.rate_hz)
                if piece.samples.shape[1]:
                    yield piece

    def _step(self) -> Iterator[Audio]:
        """Everything that the vocal up to ``_heard`` allows."""
        for ear in self._ears:
            new = ear.hear(self._sung, self._heard)
            self._append(ear.stream, new)
        for track in self._tracks:
            self._append(track.target, track.write(self._streams))
        names = [
            track.target.name for track in self._tracks if track.target in (INSTRUMENTAL_COARSE, INSTRUMENTAL_FINE)
        ]
        frames = min(self._streams[name].shape[1] for name in names)
        if frames <= self._rendered:
            return
        codes = torch.cat([self._streams[name][:, self._rendered : frames] for name in names])
        self._rendered = frames
        sound = self._limiter(self._renderer.push(codes))
        self._given_out += len(sound)
        if len(sound):
            yield Audio(sound[None], self.sample_rate_hz)

    def _append(self, stream: TokenStream, ids: Tensor) -> None:
        """Add ids ``[K, n]`` to what is known of a stream."""
        before = self._streams.get(stream.name, ids[:, :0])
        self._streams[stream.name] = torch.cat((before, ids), dim=1)


class _Sung:
    """The newest part of the vocal, as it came."""

    def __init__(self, keep_units: int) -> None:
        self.rate_hz = 0
        self.samples = 0  # in all, as sung
        self._keep_units = keep_units
        self._kept: Samples = np.zeros(0, np.float32)
        self._first = 0  # sample at which `_kept` begins

    @property
    def units(self) -> int:
        """Whole grid units that are complete."""
        return int((self._first + len(self._kept)) / (self.rate_hz * GRID_S)) if self.rate_hz else 0

    def add(self, block: Audio) -> None:
        """Append a block."""
        if self.rate_hz not in (0, block.rate_hz):
            raise RequestError(f"a block at {block.rate_hz} Hz came after blocks at {self.rate_hz} Hz; resample one")
        if not np.isfinite(block.samples).all():
            raise RequestError("a block holds NaN or infinite samples")
        self.rate_hz = block.rate_hz
        self.samples += block.samples.shape[1]
        self._extend(block.mono().samples[0])

    def extend_to(self, units: int) -> None:
        """Append silence up to grid unit ``units``."""
        missing = self._sample(units) - self._first - len(self._kept)
        self._extend(np.zeros(max(0, missing), np.float32))

    def _extend(self, samples: Samples) -> None:
        self._kept = np.concatenate((self._kept, samples))
        surplus = max(0, len(self._kept) - self._sample(self._keep_units) - len(samples))
        self._kept, self._first = self._kept[surplus:], self._first + surplus

    def _sample(self, units: int) -> int:
        return round(units * GRID_S * self.rate_hz)

    def clip(self, end: int, length: int, rate_hz: int) -> Tensor:
        """Mono ``[L]`` of ``length`` units up to unit ``end``, silence before the beginning."""
        start, stop = self._sample(end - length) - self._first, self._sample(end) - self._first
        clip = self._kept[max(0, start) : stop]
        clip = np.pad(clip, (stop - start - len(clip), 0))
        wanted = int(length * GRID_S * rate_hz)
        converted = resample(clip, self.rate_hz, rate_hz)[:wanted]
        return torch.from_numpy(np.pad(converted, (0, wanted - len(converted))))


class _Ear:
    """Tokens of the vocal, as it comes in."""

    def __init__(
        self, stream: TokenStream, tokenizer: SemanticTokenizer | AcousticTokenizer, live: LiveOptions
    ) -> None:
        self.stream = stream
        self._tokenizer = tokenizer
        self._longest, self._edge = grid_units(live.listen_s), grid_units(live.edge_s)
        reach_s = tokenizer.reach_s  # a clip's beginning is resampled as if silence came before it: a unit more
        self._before = None if reach_s is None else covering_units(round(reach_s * 1000), 1000) + 1
        self._done = 0  # grid units whose tokens are known

    def hear(self, sung: _Sung, end: int) -> Tensor:
        """Ids ``[K, n]`` of what has become known with the vocal up to unit ``end``."""
        known = max(0, end - self._edge)
        length = self._longest
        if self._before is not None:
            length = min(length, end - self._done + self._before)
        clip = sung.clip(end, length, self._tokenizer.identity.sample_rate_hz)
        ids = self._tokenizer.encode(clip[None])[0].cpu()
        first = length - (end - self._done)
        last = length - (end - known)
        self._done = known
        return ids[:, frames_at(self.stream, first) : frames_at(self.stream, last)]


class _Limiter:
    """Keeps samples below the ceiling: turns down as soon as needed, and up again slowly."""

    def __init__(self, peak_dbtp: float = PEAK_LIMIT_DBTP) -> None:
        self._ceiling = 10 ** (peak_dbtp / 20)
        self._gain = 1.0

    def __call__(self, sound: Samples) -> Samples:
        """The next piece ``[L]``."""
        peak = float(np.abs(sound).max(initial=0.0))
        gain = min(1.0, self._gain * 1.05, self._ceiling / peak if peak else 1.0)
        ramp = np.linspace(self._gain, gain, len(sound), dtype=np.float32)
        self._gain = gain
        limited: Samples = np.clip(sound * ramp, -self._ceiling, self._ceiling).astype(np.float32)
        return limited
