"""Accompanying while the singer sings: blocks of vocal in, blocks of accompaniment out, after a stated look-ahead.

It works with stages whose conditions are ``aligned``, which hear the vocal up to a stated look-ahead and nothing
beyond. Each time :attr:`LiveOptions.hop_s` of vocal has come in:

1. the newest :attr:`LiveOptions.listen_s` of vocal are tokenized as one clip; the tokens of the new part are taken,
   less :attr:`LiveOptions.edge_s` at the end, whose features would change with what follows;
2. each stage writes as far as the tokens it hears allow. Its window rolls as in long form: the last half of what is
   written begins the next window. A non-autoregressive stage fills the new frames beside the keys and values that it
   keeps of earlier ones;
3. the new frames are decoded and faded into what sounded before.

Nothing is computed twice except these contexts, and a session that goes on for hours computes as much for each hop as
one of a minute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.accompanist.networks import Role, StageNetwork
from hafm_lightning.accompanist.rendering import FADE_S, Renderer
from hafm_lightning.accompanist.windows import GRID_S, covering_units, frames_at, grid_units
from hafm_lightning.audio import PEAK_LIMIT_DBTP, Audio, Samples, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.decoding import Decoder
from hafm_lightning.modeling.filling import Filler
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokenizers import AcousticTokenizer, SemanticTokenizer, Tokenizers
from hafm_lightning.tokens import (
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    STYLE,
    VOCAL_ACOUSTIC,
    VOCAL_SEMANTIC,
    TokenStream,
    nearest_frames,
)

SeedOf = Callable[[Role, int], int]
"""Seed of a stage's window, from the stage and the window's start."""


@dataclass(frozen=True)
class LiveOptions:
    """Sizes of a live session; all are multiples of 0.04 s.

    Attributes:
        hop_s: Vocal that is gathered before the next step; part of the latency, and the time each step may take.
        listen_s: Vocal tokenized at each step, as one clip.
        edge_s: End of that clip whose tokens wait for the next step.
        context_s: Earlier music whose keys and values a non-autoregressive stage keeps, to be seen by new frames.
        sound_context_s: Earlier frames decoded again with the new ones.
    """

    hop_s: float = 0.48
    listen_s: float = 10.0
    edge_s: float = 0.08
    context_s: float = 1.0
    sound_context_s: float = 0.48

    def __post_init__(self) -> None:
        for name in ("hop_s", "listen_s", "edge_s", "context_s", "sound_context_s"):
            try:
                grid_units(getattr(self, name))
            except ValueError as error:
                raise RequestError(f"live option {name}: {error}") from error
        if self.listen_s < self.hop_s + self.edge_s:
            raise RequestError(f"live option listen_s must be at least hop_s + edge_s, got {self.listen_s}")


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
        self._tracks: list[_Track] = []
        for network in networks:
            kind = _FilledTrack if network.model.layout.pattern == "nonautoregressive" else _WrittenTrack
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
        self._length, self._edge = grid_units(live.listen_s), grid_units(live.edge_s)
        self._done = 0  # grid units whose tokens are known

    def hear(self, sung: _Sung, end: int) -> Tensor:
        """Ids ``[K, n]`` of what has become known with the vocal up to unit ``end``."""
        known = max(0, end - self._edge)
        clip = sung.clip(end, self._length, self._tokenizer.identity.sample_rate_hz)
        ids = self._tokenizer.encode(clip[None])[0].cpu()
        first = self._length - (end - self._done)
        last = self._length - (end - known)
        self._done = known
        return ids[:, frames_at(self.stream, first) : frames_at(self.stream, last)]


class _Track(ABC):
    """One stage's writing."""

    def __init__(
        self, network: StageNetwork, options: SamplingOptions, live: LiveOptions, seed_of: SeedOf, window: int
    ) -> None:
        self.network, self.options, self.live, self.seed_of, self.window = network, options, live, seed_of, window
        self.target = network.model.layout.target
        self.done = torch.zeros(self.target.codebooks, 0, dtype=torch.int64)  # [K, n] since the beginning
        late = self.target.codebooks - 1 if network.model.layout.pattern == "delay" else 0
        ahead = network.model.aligned.ahead if network.model.aligned is not None else 0
        self.reach = ahead + late
        """Frames after a frame that must be heard before it can be written."""
        # one unit more, since frames of different rates begin apart
        self.look_ahead = covering_units(self.reach, self.target.rate_hz) + 1 if self.reach else 1
        """:attr:`reach` in grid units."""

    @abstractmethod
    def write(self, streams: Mapping[str, Tensor]) -> Tensor:
        """New ids ``[K, n]``, as many as ``streams`` (name -> ``[K, T]`` since the beginning) allow."""

    def cut(self, streams: Mapping[str, Tensor], start: int, units: int) -> dict[str, Tensor]:
        """Conditions ``[1, K, T]`` for ``units`` grid units from ``start``; 0, never heard, where not known yet."""
        conditions = {}
        for stream in self.network.model.layout.conditions:
            ids = streams[stream.name]
            if stream.rate_hz:
                first, frames = frames_at(stream, start), frames_at(stream, units)
                ids = ids[:, first : first + frames]
                ids = F.pad(ids, (0, frames - ids.shape[1]))
            conditions[stream.name] = ids[None]
        return conditions


class _WrittenTrack(_Track):
    """A stage that writes step by step, in rolling windows."""

    def __init__(
        self, network: StageNetwork, options: SamplingOptions, live: LiveOptions, seed_of: SeedOf, window: int
    ) -> None:
        super().__init__(network, options, live, seed_of, window)
        self._frames = frames_at(self.target, window)
        keep = window - self.look_ahead
        self._keep, self._overlap = keep, keep // 2
        self._start = 0
        self._decoder = self._window(known=0)

    def _window(self, known: int) -> Decoder:
        """A decoder for the window at ``_start``, of which ``known`` frames are written."""
        prefix = self.done[None, :, self.done.shape[1] - known :] if known else None
        seeds = [self.seed_of(self.network.role, self._start)]
        return Decoder(self.network.model, self._frames, self.options, seeds, prefix=prefix)

    def _writable(self, streams: Mapping[str, Tensor]) -> int:
        """Frames of the window, from its beginning, for which all conditions are known."""
        writable = self._frames
        for stream in self.network.model.layout.conditions:
            if not stream.rate_hz:
                continue
            known = streams[stream.name].shape[1] - frames_at(stream, self._start)
            sounding = nearest_frames(stream, self.target, self._frames)  # [T]
            writable = min(writable, int((sounding < known).sum()) - self.reach)
        return writable

    def write(self, streams: Mapping[str, Tensor]) -> Tensor:
        before = self.done.shape[1]
        while True:
            writable = min(self._writable(streams), frames_at(self.target, self._keep))
            if writable > self.done.shape[1] - frames_at(self.target, self._start):
                self._decoder.condition(self.cut(streams, self._start, self.window))
                codes = self._decoder.advance(writable)[0].cpu()
                self.done = torch.cat((self.done[:, : frames_at(self.target, self._start)], codes), dim=1)
            if writable < frames_at(self.target, self._keep):
                return self.done[:, before:]
            self._start += self._keep - self._overlap
            self._decoder = self._window(known=frames_at(self.target, self._overlap))


class _FilledTrack(_Track):
    """A non-autoregressive stage: new frames are filled in one pass a codebook, beside what is kept of earlier ones."""

    def __init__(
        self, network: StageNetwork, options: SamplingOptions, live: LiveOptions, seed_of: SeedOf, window: int
    ) -> None:
        super().__init__(network, options, live, seed_of, window)
        self._filler = Filler(network.model, options, frames_at(self.target, grid_units(live.context_s)))
        behind = network.model.aligned.behind if network.model.aligned is not None else 0
        self._behind = covering_units(behind, self.target.rate_hz) + 1  # one more, since frames begin within units

    def write(self, streams: Mapping[str, Tensor]) -> Tensor:
        known_units = min(
            int(streams[stream.name].shape[1] / (stream.rate_hz * GRID_S))
            for stream in self.network.model.layout.conditions
            if stream.rate_hz
        )
        before = self.done.shape[1]
        frames = frames_at(self.target, known_units) - before
        new = frames - self.reach
        if new <= 0:
            return self.done[:, before:]
        start = max(0, int(before / (self.target.rate_hz * GRID_S)) - self._behind)
        codes = self._filler.fill(
            self.cut(streams, start, known_units - start),
            [self.seed_of(self.network.role, known_units)],
            frames,
            new,
        )[0].cpu()
        self.done = torch.cat((self.done, codes), dim=1)
        return self.done[:, before:]


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
