"""Batches of tokens gathered from a split's memory map, and what is checked before any is.

Choices:

* A batch's int64 tensors are filled straight from the map, cast and cropped in one pass, instead of collating items.
  This is so cheap (``benchmarks/data.py``) that loader workers pay off for remote or cold storage only.
* Workers send batches as 16-bit ids through their pipe. Sending int64 tensors through shared memory, as torch does,
  costs a file descriptor a stream and four times the bytes: several times more than reading the clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hafm_lightning.compatibility import tokenizer_difference
from hafm_lightning.data_modules.sampling import BatchRequest
from hafm_lightning.errors import RequestError
from hafm_lightning.shards import STORED_STREAMS, Manifest, ShardReader
from hafm_lightning.tokens import (
    COARSE_CODEBOOKS,
    FRAME_GRID_S,
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_CODES,
    INSTRUMENTAL_FINE,
    STREAMS,
    TokenBatch,
    TokenStream,
    stream_named,
)

Ids = np.ndarray[Any, np.dtype[np.integer[Any]]]


@dataclass(frozen=True)
class StoredAs:
    """Where a stream lies in a shard: the array's name and the range of its codebooks."""

    array: str
    first: int
    last: int


def stored_as(stream: TokenStream) -> StoredAs:
    """Shards keep the coarse and the fine codebooks of the accompaniment in one array; other streams lie alone."""
    if stream == INSTRUMENTAL_COARSE:
        return StoredAs(INSTRUMENTAL_CODES, 0, COARSE_CODEBOOKS)
    if stream == INSTRUMENTAL_FINE:
        return StoredAs(INSTRUMENTAL_CODES, COARSE_CODEBOOKS, COARSE_CODEBOOKS + INSTRUMENTAL_FINE.codebooks)
    return StoredAs(stream.name, 0, stream.codebooks)


class ClipBatches(Dataset[TokenBatch]):
    """A split as a map from :class:`BatchRequest` to :class:`TokenBatch`.

    Args:
        reader: The split's shards.
        crop_s: Length of a crop in seconds; None takes whole clips.
        streams: Names of the streams to deliver; None takes all that the shards hold.

    Raises:
        RequestError: A stream is unknown or not in the shards.
    """

    def __init__(self, reader: ShardReader, crop_s: float | None = None, streams: Sequence[str] | None = None) -> None:
        self.reader = reader
        manifest = reader.manifest
        held = [stream for stream in STREAMS.values() if stored_as(stream).array in manifest.streams]
        names = [stream.name for stream in held] if streams is None else list(streams)
        missing = [name for name in names if name not in {stream.name for stream in held}]
        if missing or not names:
            raise RequestError(
                f"split {manifest.split!r} holds no stream {', '.join(map(repr, missing)) or '(none asked for)'}\n"
                f"it holds {', '.join(stream.name for stream in held)}; prepare shards with the stream, "
                "or leave it out of the stage's conditions and of data.streams"
            )
        self.streams = [stream_named(name) for name in names]
        self.duration_s = manifest.duration_s if crop_s is None else crop_s
        self._ends = np.cumsum([shard.clips for shard in manifest.shards], dtype=np.int64)
        self._grid_hz = round(1 / FRAME_GRID_S)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, request: BatchRequest) -> TokenBatch:
        """Gather the clips of one batch: each stream int64 ``[B, K, T]``."""
        return as_tensors(*self.gather(request, np.int64))

    def gather(self, request: BatchRequest, dtype: type[np.integer[Any]]) -> tuple[dict[str, Ids], list[str]]:
        """Streams ``[B, K, T]`` of the requested clips, cast and cropped in one pass, and the clips' ids."""
        size = len(request)
        shards = np.searchsorted(self._ends, request.clips, side="right")
        counts = [shard.clips for shard in self.reader.manifest.shards]
        places = [
            (self.reader.arrays(int(shard)), int(clip - self._ends[shard]) + counts[shard])
            for shard, clip in zip(shards, request.clips, strict=True)
        ]
        starts = request.starts.tolist()
        batch: dict[str, Ids] = {}
        for stream in self.streams:
            stored = stored_as(stream)
            if not stream.rate_hz:
                tags = np.array([arrays[stored.array][row] for arrays, row in places], dtype=dtype)
                batch[stream.name] = tags.reshape(size, 1, 1)
                continue
            frames, per_step = stream.frames(self.duration_s), stream.rate_hz // self._grid_hz
            ids = np.empty((size, stream.codebooks, frames), dtype=dtype)
            for place, ((arrays, row), start) in enumerate(zip(places, starts, strict=True)):
                clip = arrays[stored.array][row]
                kept = slice(start * per_step, start * per_step + frames)
                ids[place] = clip[stored.first : stored.last, kept] if clip.ndim == 2 else clip[kept]
            batch[stream.name] = ids
        clip_ids = self.reader.clip_ids
        return batch, [clip_ids[clip] for clip in request.clips]


def as_tensors(streams: dict[str, Ids], clip_ids: list[str]) -> TokenBatch:
    """A batch of int64 tensors from integer arrays ``[B, K, T]``."""
    tensors = {name: torch.from_numpy(ids.astype(np.int64, copy=False)) for name, ids in streams.items()}
    return TokenBatch(tensors, clip_ids)


class WorkerClipBatches(ClipBatches):
    """The same split inside a loader worker: batches travel as 16-bit ids."""

    def __getitem__(self, request: BatchRequest) -> Parcel:  # type: ignore[override]
        return Parcel(*self.gather(request, np.uint16))


@dataclass(frozen=True)
class Parcel:
    """A batch that pickles as 16-bit ids and unpickles as a :class:`TokenBatch`."""

    streams: dict[str, Ids]
    clip_ids: list[str]

    def __reduce__(self) -> tuple[Any, ...]:
        return as_tensors, (self.streams, self.clip_ids)


def check_split(reader: ShardReader) -> None:
    """Read every id of a split once; RequestError names the shard, the stream and the clip that do not fit."""
    for number, info in enumerate(reader.manifest.shards):
        for name, rows in reader.arrays(number).items():
            vocabulary = STORED_STREAMS[name].vocabulary
            if int(rows.max()) < vocabulary:
                continue
            row = int((rows.reshape(info.clips, -1) >= vocabulary).any(axis=1).argmax())
            raise RequestError(
                f"{info.file} of split {reader.manifest.split!r}: clip {info.clip_ids[row]!r} has the id "
                f"{int(rows[row].max())} in {name!r}, allowed are 0..{vocabulary - 1}\n"
                "the shard is damaged or comes from other tokenizers: prepare it again"
            )


def check_manifests(manifests: Mapping[str, Manifest], root: str) -> None:
    """RequestError unless the splits come from the same tokenizers and have clips of one length."""
    splits = list(manifests)
    for split in splits[1:]:
        first, other = manifests[splits[0]], manifests[split]
        name = f"the split {split!r} of {root}"
        problem = tokenizer_difference(
            name, other.tokenizers, f"the split {splits[0]!r}", first.tokenizers, verb="prepared"
        )
        for what, a, b in (
            ("resampler", first.resampler, other.resampler),
            ("duration_s", first.duration_s, other.duration_s),
        ):
            if problem is None and a != b:
                problem = f"{name} was prepared with a different {what} ({a!r} and {b!r}) than the split {splits[0]!r}"
        if problem is not None:
            raise RequestError(f"{problem}\ntheir tokens do not mean the same: prepare both in one run")


def as_gathered(batch: Any) -> Any:
    """The collating function of loaders whose dataset returns whole batches."""
    return batch
