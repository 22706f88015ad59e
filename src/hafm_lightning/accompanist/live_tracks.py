"""What each stage does in a live session: writing as far as its conditions allow, step by step or filling.

:mod:`~hafm_lightning.accompanist.live` says how the stages follow each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.accompanist.stage_network import Role, StageNetwork
from hafm_lightning.accompanist.windows import GRID_S, covering_units, frames_at, grid_units
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.decoding import Decoder, decoder_for
from hafm_lightning.modeling.filling import Filler
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokens import nearest_frames

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


class Track(ABC):
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


class WrittenTrack(Track):
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
        return decoder_for(self.network.model, self._frames, self.options, seeds, prefix=prefix)

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

    def _known_units(self, streams: Mapping[str, Tensor]) -> int:
        """Grid units of the window, from its beginning, for which some condition is known."""
        known = max(
            covering_units(streams[stream.name].shape[1], stream.rate_hz)
            for stream in self.network.model.layout.conditions
            if stream.rate_hz
        )
        return min(self.window, known - self._start)

    def write(self, streams: Mapping[str, Tensor]) -> Tensor:
        """As the base class says."""
        before = self.done.shape[1]
        while True:
            writable = min(self._writable(streams), frames_at(self.target, self._keep))
            if writable > self.done.shape[1] - frames_at(self.target, self._start):
                self._decoder.condition(self.cut(streams, self._start, self._known_units(streams)))
                codes = self._decoder.advance(writable)[0].cpu()
                self.done = torch.cat((self.done[:, : frames_at(self.target, self._start)], codes), dim=1)
            if writable < frames_at(self.target, self._keep):
                return self.done[:, before:]
            self._start += self._keep - self._overlap
            self._decoder = self._window(known=frames_at(self.target, self._overlap))


class FilledTrack(Track):
    """A non-autoregressive stage: new frames are filled in one pass a codebook, beside what is kept of earlier ones."""

    def __init__(
        self, network: StageNetwork, options: SamplingOptions, live: LiveOptions, seed_of: SeedOf, window: int
    ) -> None:
        super().__init__(network, options, live, seed_of, window)
        self._filler = Filler(network.model, options, frames_at(self.target, grid_units(live.context_s)))
        behind = network.model.aligned.behind if network.model.aligned is not None else 0
        self._behind = covering_units(behind, self.target.rate_hz) + 1  # one more, since frames begin within units

    def write(self, streams: Mapping[str, Tensor]) -> Tensor:
        """As the base class says."""
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
