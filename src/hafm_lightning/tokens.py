"""The alphabet: every token stream, rate, vocabulary and special token of the project, once.

Nothing outside this module writes a rate, a vocabulary size or a special id. A :class:`TokenStream` names a
sequence of discrete codes with a frame rate; a :class:`TokenBatch` carries one int64 tensor ``[B, K, T]`` for each
stream. Shapes here and everywhere: ``B`` batch, ``K`` codebooks, ``T`` frames, ``S`` sequence steps,
``V`` vocabulary, ``D`` width, ``H`` heads, ``L`` samples.

Choices:

* Frame times are integers on a common clock of :data:`TICK_RATE_HZ` ticks a second, the least common multiple of
  50 Hz (semantic) and 75 Hz (acoustic), so that times are compared exactly.
* Special tokens are never part of a vocabulary. Each is a row of its own in the model (a learned vector), and
  inside integer tensors it is a negative id, so that a forgotten mask fails the embedding look-up loudly.

Source: HAFM (arXiv 2604.09054), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

__all__ = [
    "ACOUSTIC_CODEBOOKS",
    "ACOUSTIC_RATE_HZ",
    "ACOUSTIC_VOCABULARY",
    "BEGIN",
    "CLIP_DURATION_S",
    "COARSE_CODEBOOKS",
    "EMPTY",
    "FRAME_GRID_S",
    "INSTRUMENTAL_COARSE",
    "INSTRUMENTAL_CODES",
    "INSTRUMENTAL_FINE",
    "INSTRUMENTAL_SEMANTIC",
    "NULL",
    "SEMANTIC_RATE_HZ",
    "SEMANTIC_VOCABULARY",
    "SPECIAL_TOKENS",
    "STREAMS",
    "STYLE",
    "TICK_RATE_HZ",
    "VOCAL_ACOUSTIC",
    "VOCAL_SEMANTIC",
    "TokenBatch",
    "TokenStream",
    "check_ids",
    "join_codes",
    "nearest_frames",
    "split_codes",
    "stream_named",
]

SEMANTIC_RATE_HZ = 50
"""Frames a second of HuBERT's features (one every 20 ms)."""
ACOUSTIC_RATE_HZ = 75
"""Frames a second of EnCodec's 24 kHz model (one every 320 samples)."""
TICK_RATE_HZ = 150
"""Ticks a second of the clock on which the frames of every stream start at whole numbers."""
CLIP_DURATION_S = 10.0
"""Length of a training clip, in seconds: 500 semantic and 750 acoustic frames."""

SEMANTIC_VOCABULARY = 500
"""Number of k-means centroids over HuBERT features (or over the offline features)."""
ACOUSTIC_VOCABULARY = 1024
"""Entries of each EnCodec codebook."""
ACOUSTIC_CODEBOOKS = 8
"""Codebooks of EnCodec at 6 kb/s."""
COARSE_CODEBOOKS = 4
"""The first codebooks, which the coarse stage writes; the fine stage writes the rest."""

BEGIN = -1
"""Beginning of sequence: what the target's first step sees in place of a previous token."""
NULL = -2
"""Dropped condition: replaces every token of a clip's conditions, at the same length, for guidance."""
EMPTY = -3
"""No token: a place of the `delay` pattern before a codebook's first or after its last frame."""
SPECIAL_TOKENS: Mapping[str, int] = {"begin": BEGIN, "null": NULL, "empty": EMPTY}


@dataclass(frozen=True)
class TokenStream:
    """One named sequence of discrete tokens.

    Attributes:
        name: Key of the stream in batches, shards and configurations.
        rate_hz: Frames a second. 0 marks a stream that describes the whole clip with one frame.
        codebooks: Tokens a frame, ``K``.
        vocabulary: Ids run from 0 to ``vocabulary - 1``.
    """

    name: str
    rate_hz: int
    codebooks: int
    vocabulary: int

    def __post_init__(self) -> None:
        if self.rate_hz < 0 or (self.rate_hz and TICK_RATE_HZ % self.rate_hz):
            raise ValueError(
                f"stream {self.name!r}: rate {self.rate_hz} Hz does not divide the common clock of {TICK_RATE_HZ} Hz"
            )
        if self.codebooks < 1 or self.vocabulary < 2:
            raise ValueError(f"stream {self.name!r}: needs at least 1 codebook and 2 ids")

    @property
    def ticks_per_frame(self) -> int:
        """Length of a frame in ticks of :data:`TICK_RATE_HZ`; 0 for a stream about the whole clip."""
        return TICK_RATE_HZ // self.rate_hz if self.rate_hz else 0

    def frames(self, duration_s: float) -> int:
        """Number of frames ``T`` in ``duration_s`` seconds.

        Raises:
            ValueError: The duration is not a positive whole number of this stream's frames.

        >>> stream_named("vocal_semantic").frames(10.0)
        500
        >>> stream_named("instrumental_coarse").frames(10.0)
        750
        """
        if not 0 < duration_s < math.inf:
            raise ValueError(f"duration must be positive and finite, got {duration_s} s")
        if not self.rate_hz:
            return 1
        exact = Fraction(duration_s).limit_denominator(10**6) * self.rate_hz
        if exact.denominator != 1:
            raise ValueError(
                f"{duration_s} s is {float(exact)} frames of {self.name!r} at {self.rate_hz} Hz; "
                f"use a multiple of {FRAME_GRID_S} s"
            )
        return int(exact)

    def duration_s(self, frames: int) -> float:
        """Seconds covered by ``frames`` frames; undefined (ValueError) for a stream about the whole clip."""
        if not self.rate_hz:
            raise ValueError(f"stream {self.name!r} describes a whole clip and has no duration of its own")
        return frames / self.rate_hz


FRAME_GRID_S = 1 / 25
"""Durations that are whole frames of both 50 Hz and 75 Hz streams are multiples of this, in seconds."""

VOCAL_SEMANTIC = TokenStream("vocal_semantic", SEMANTIC_RATE_HZ, 1, SEMANTIC_VOCABULARY)
INSTRUMENTAL_SEMANTIC = TokenStream("instrumental_semantic", SEMANTIC_RATE_HZ, 1, SEMANTIC_VOCABULARY)
VOCAL_ACOUSTIC = TokenStream("vocal_acoustic", ACOUSTIC_RATE_HZ, ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY)
INSTRUMENTAL_COARSE = TokenStream("instrumental_coarse", ACOUSTIC_RATE_HZ, COARSE_CODEBOOKS, ACOUSTIC_VOCABULARY)
INSTRUMENTAL_FINE = TokenStream(
    "instrumental_fine", ACOUSTIC_RATE_HZ, ACOUSTIC_CODEBOOKS - COARSE_CODEBOOKS, ACOUSTIC_VOCABULARY
)
STYLE = TokenStream("style", 0, 1, 256)
"""Optional tag of the whole clip (genre, instrumentation); its names live in the shards' manifest."""

STREAMS: Mapping[str, TokenStream] = {
    stream.name: stream
    for stream in (
        VOCAL_SEMANTIC,
        INSTRUMENTAL_SEMANTIC,
        VOCAL_ACOUSTIC,
        INSTRUMENTAL_COARSE,
        INSTRUMENTAL_FINE,
        STYLE,
    )
}

INSTRUMENTAL_CODES = "instrumental_codes"
"""Name under which shards store coarse and fine codebooks together, ``[n, 8, T]``."""


def stream_named(name: str) -> TokenStream:
    """The stream called ``name``; ValueError names the known ones."""
    if name not in STREAMS:
        raise ValueError(f"unknown token stream {name!r}; known streams: {', '.join(STREAMS)}")
    return STREAMS[name]


def split_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``[..., 8, T]`` -> coarse ``[..., 4, T]`` and fine ``[..., 4, T]``. Inverse: :func:`join_codes`.

    >>> coarse, fine = split_codes(torch.arange(8).reshape(1, 8, 1))
    >>> coarse.flatten().tolist(), fine.flatten().tolist()
    ([0, 1, 2, 3], [4, 5, 6, 7])
    """
    if codes.shape[-2] != ACOUSTIC_CODEBOOKS:
        raise ValueError(f"expected {ACOUSTIC_CODEBOOKS} codebooks, got shape {tuple(codes.shape)}")
    return codes[..., :COARSE_CODEBOOKS, :], codes[..., COARSE_CODEBOOKS:, :]


def join_codes(coarse: Tensor, fine: Tensor) -> Tensor:
    """Coarse ``[..., 4, T]`` and fine ``[..., 4, T]`` -> codes ``[..., 8, T]``. Inverse: :func:`split_codes`."""
    return torch.cat((coarse, fine), dim=-2)


def nearest_frames(source: TokenStream, target: TokenStream, target_frames: int) -> Tensor:
    """For each target frame, the source frame that sounds at the target frame's centre: int64 ``[T_target]``.

    A clip-level source gives zeros. The result is not clipped to the source's length; since both streams cover the
    same duration, it never exceeds it.

    >>> nearest_frames(stream_named("vocal_semantic"), stream_named("instrumental_coarse"), 6).tolist()
    [0, 1, 1, 2, 3, 3]
    """
    index = torch.arange(target_frames, dtype=torch.int64)
    if not source.rate_hz:
        return torch.zeros_like(index)
    return ((2 * index + 1) * source.rate_hz) // (2 * target.rate_hz)


def check_ids(stream: TokenStream, ids: Tensor, where: str) -> None:
    """Raise ValueError unless ``ids [..., K, T]`` fit the stream; ``where`` says which file or batch."""
    if ids.dim() < 2 or ids.shape[-2] != stream.codebooks:
        raise ValueError(
            f"{where}: stream {stream.name!r} needs shape [..., {stream.codebooks}, T], got {tuple(ids.shape)}"
        )
    if ids.numel() == 0:
        raise ValueError(f"{where}: stream {stream.name!r} is empty")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= stream.vocabulary:
        raise ValueError(
            f"{where}: stream {stream.name!r} has ids {low}..{high}, allowed 0..{stream.vocabulary - 1}; "
            "the tokens come from another tokenizer: prepare the shards again"
        )


@dataclass
class TokenBatch:
    """Clips of tokens, ready for a stage.

    Attributes:
        streams: Name -> int64 ids ``[B, K, T]``; all of one duration.
        clip_ids: ``B`` names, ``song@start_s``, for messages and per-clip reports.
    """

    streams: dict[str, Tensor]
    clip_ids: list[str]

    def __post_init__(self) -> None:
        for name, ids in self.streams.items():
            if ids.dim() != 3 or ids.shape[0] != len(self.clip_ids):
                raise ValueError(
                    f"stream {name!r}: expected [B={len(self.clip_ids)}, K, T] for {len(self.clip_ids)} clips, "
                    f"got {tuple(ids.shape)}"
                )

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, name: str) -> Tensor:
        """Ids ``[B, K, T]`` of one stream; ValueError names what the batch holds."""
        if name not in self.streams:
            raise ValueError(
                f"the batch has no stream {name!r}, only {', '.join(sorted(self.streams))}; "
                "prepare shards that hold it, or take it from the stage's conditions"
            )
        return self.streams[name]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenBatch:
        """The batch on another device."""
        moved = {name: ids.to(device, non_blocking=non_blocking) for name, ids in self.streams.items()}
        return TokenBatch(moved, self.clip_ids)

    def pin_memory(self) -> TokenBatch:
        """The batch in page-locked memory (called by DataLoader)."""
        return TokenBatch({name: ids.pin_memory() for name, ids in self.streams.items()}, self.clip_ids)

    def rows(self, index: Sequence[int]) -> TokenBatch:
        """The clips at ``index``, in that order."""
        chosen = list(index)
        return TokenBatch({n: ids[chosen] for n, ids in self.streams.items()}, [self.clip_ids[i] for i in chosen])

    @staticmethod
    def concatenate(batches: Iterable[TokenBatch]) -> TokenBatch:
        """Clips of several batches with the same streams, one after the other."""
        parts = list(batches)
        if not parts:
            raise ValueError("nothing to concatenate")
        names = list(parts[0].streams)
        return TokenBatch(
            {name: torch.cat([part[name] for part in parts]) for name in names},
            [clip for part in parts for clip in part.clip_ids],
        )

    @property
    def duration_s(self) -> float:
        """Seconds of music in each clip, from the first stream that has a rate."""
        for name, ids in self.streams.items():
            stream = stream_named(name)
            if stream.rate_hz:
                return stream.duration_s(ids.shape[-1])
        raise ValueError("the batch holds no stream with a frame rate")
