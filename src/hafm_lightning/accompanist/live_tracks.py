"""One stage in a live session: it writes as far as its conditions allow, step by step or in passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.accompanist.windows import GRID_S, covering_units, frames_at, grid_units, window_seed
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.decoding import Decoder, decoder_for
from hafm_lightning.modeling.filling import Filler
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokens import TokenStream, nearest_frames


@dataclass(frozen=True)
class LiveOptions:
    """Sizes of a live session; all are multiples of 0.04 s.

    Attributes:
        hop_s: Vocal between two steps; part of the latency, and the time that each step may take.
        listen_s: Vocal tokenized at each step, as one clip.
        edge_s: End of that clip whose tokens wait for the next step.
        context_s: Earlier music whose keys and values are the context of new frames in a non-autoregressive stage.
        sound_context_s: Earlier frames decoded again with the new ones.
    """

    hop_s: float = 0.48
    listen_s: float = 10.0
    edge_s: float = 0.08
    context_s: float = 1.0
    sound_context_s: float = 0.48

    def __post_init__(self) -> None:
        for name, size_s in vars(self).items():
            try:
                grid_units(size_s)
            except ValueError as error:
                raise RequestError(f"live option {name}: {error}") from error
        if self.listen_s < self.hop_s + self.edge_s:
            raise RequestError(f"live option listen_s must be at least hop_s + edge_s, got {self.listen_s}")


class NewestIds:
    """Ids of a stream since the beginning, ``[K, T]``, of which the newest are kept: hours take no more than minutes.

    Frames are numbered from the beginning, as in a tensor of all ids.

    Args:
        stream: The stream.
        window: Grid units that are read again at most; three times as many are kept, and 10 s.
    """

    def __init__(self, stream: TokenStream, window: int) -> None:
        self.kept = torch.zeros(stream.codebooks, 0, dtype=torch.int64)
        self._first = 0  # frame of the first kept id
        self._most = frames_at(stream, 3 * window + grid_units(10.0))

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, T)`` since the beginning."""
        return self.kept.shape[0], self._first + self.kept.shape[1]

    def __getitem__(self, place: tuple[slice, slice]) -> Tensor:
        """``[:, first:end]``; IndexError where frames are gone."""
        codebooks, frames = place
        first, end, _ = frames.indices(self.shape[1])
        if first < self._first:
            raise IndexError(f"frame {first} is gone, {self._first} is the first that is kept")
        return self.kept[codebooks, first - self._first : max(first, end) - self._first]

    def write(self, first: int, ids: Tensor) -> None:
        """Put ``ids [K, n]`` at frame ``first``, in place of what was there and after it."""
        self.kept = torch.cat((self[:, self._first : first], ids), dim=1)
        surplus = self.kept.shape[1] - self._most
        if surplus > self._most:  # not at each step, so that a step rarely copies
            self.kept, self._first = self.kept[:, surplus:].clone(), self._first + surplus


Ids = Tensor | NewestIds
"""Ids ``[K, T]`` since the beginning; those of a style are a tensor."""


@dataclass(eq=False)
class Track(ABC):
    """The tokens of one stage.

    Attributes:
        done: Ids written since the beginning, ``[K, n]``.
        right_context: Frames of the conditions after a frame that are needed before it can be written.
        look_ahead: :attr:`right_context` in grid units.
    """

    network: StageNetwork
    options: SamplingOptions
    live: LiveOptions
    seed: int
    window: int  # length of the stage's windows, in grid units

    def __post_init__(self) -> None:
        layout = self.network.model.layout
        self.target = layout.target
        self.timed = [stream for stream in layout.conditions if stream.rate_hz]  # all but the style
        self.done = NewestIds(self.target, self.window)
        self.right_context = self.network.right_context
        # one unit more, since the frames that are ready may end within a unit
        self.look_ahead = self.network.right_context_units + 1

    @abstractmethod
    def write(self, streams: Mapping[str, Ids]) -> Tensor:
        """New ids ``[K, n]``, as many as ``streams`` (name -> ``[K, T]`` since the beginning) allow."""

    def cut(self, streams: Mapping[str, Ids], start: int, units: int) -> dict[str, Tensor]:
        """Conditions ``[1, K, T]`` for ``units`` grid units from ``start``; 0 after their ends, without effect."""
        conditions = {}
        for stream in self.network.model.layout.conditions:
            if stream.rate_hz:
                first, frames = frames_at(stream, start), frames_at(stream, units)
                ids = streams[stream.name][:, first : first + frames]
                ids = F.pad(ids, (0, frames - ids.shape[1]))
            else:
                ids = streams[stream.name][:, :]
            conditions[stream.name] = ids[None]
        return conditions


class WrittenTrack(Track):
    """A stage that writes step by step, in rolling windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._frames = frames_at(self.target, self.window)
        self._keep = self.window - self.look_ahead
        self._start = 0
        self._decoder = self._decoder_after(0)

    def _decoder_after(self, written: int) -> Decoder:
        """A decoder for the window at ``_start``, whose first ``written`` frames are written."""
        prefix = self.done[:, self.done.shape[1] - written :][None] if written else None
        seed = window_seed(self.seed, self.network.role, self._start)
        model = self.network.model
        return decoder_for(model)(model, self._frames, self.options, [seed], prefix=prefix)

    def _writable(self, streams: Mapping[str, Ids]) -> int:
        """Frames of the window, from its beginning, whose conditions are complete."""
        writable = self._frames
        for stream in self.timed:
            available = streams[stream.name].shape[1] - frames_at(stream, self._start)
            nearest = nearest_frames(stream, self.target, self._frames)  # [T]
            writable = min(writable, int((nearest < available).sum()) - self.right_context)
        return writable

    def _condition_units(self, streams: Mapping[str, Ids]) -> int:
        """Grid units of the window, from its beginning, of the longest condition."""
        end = max(covering_units(streams[stream.name].shape[1], stream.rate_hz) for stream in self.timed)
        return min(self.window, end - self._start)

    def write(self, streams: Mapping[str, Ids]) -> Tensor:
        """See :meth:`Track.write`."""
        before = self.done.shape[1]
        while True:
            start, keep = frames_at(self.target, self._start), frames_at(self.target, self._keep)
            writable = min(self._writable(streams), keep)
            if writable > self.done.shape[1] - start:
                self._decoder.condition(self.cut(streams, self._start, self._condition_units(streams)))
                codes = self._decoder.advance(writable)[0].cpu()
                self.done.write(start, codes)
            if writable < keep:
                return self.done[:, before:]
            overlap = self._keep // 2
            self._start += self._keep - overlap
            self._decoder = self._decoder_after(frames_at(self.target, overlap))


class FilledTrack(Track):
    """A non-autoregressive stage: new frames are filled in one pass a codebook, with earlier ones as context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        context = frames_at(self.target, grid_units(self.live.context_s))
        self._filler = Filler(self.network.model, self.options, context)
        aligned = self.network.model.aligned
        behind = aligned.behind if aligned is not None else 0
        self._left_context = covering_units(behind, self.target.rate_hz) + 1  # since frames begin within units

    def write(self, streams: Mapping[str, Ids]) -> Tensor:
        """See :meth:`Track.write`."""
        end = min(int(streams[stream.name].shape[1] / (stream.rate_hz * GRID_S)) for stream in self.timed)
        before = self.done.shape[1]
        frames = frames_at(self.target, end) - before
        new = frames - self.right_context
        if new <= 0:
            return self.done[:, before:]
        start = max(0, int(before / (self.target.rate_hz * GRID_S)) - self._left_context)
        seed = window_seed(self.seed, self.network.role, end)
        codes = self._filler.fill(self.cut(streams, start, end - start), [seed], frames, new)[0].cpu()
        self.done.write(before, codes)
        return self.done[:, before:]
