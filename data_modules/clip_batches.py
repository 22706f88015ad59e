"""Batches of tokens gathered from a split's memory map, and checks of splits.

Choices:

* A batch's int64 tensors are filled straight from the map, cast and cropped in one pass, which is so cheap
  (``benchmarks/data.py``) that loader workers pay off for remote or cold storage only.
* Workers send 16-bit ids through their pipe; int64 tensors in shared memory would cost more than reading the clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset, get_worker_info

from hafm_lightning.data_modules.sampling import BatchRequest
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_scores import PairedBatch
from hafm_lightning.shards import STORED_STREAMS, Manifest, ShardReader
from hafm_lightning.tokenizers.compatibility import tokenizer_difference
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

Ids = dict[str, np.ndarray[Any, np.dtype[np.integer[Any]]]]
"""Stream -> ids ``[B, K, T]``."""


def stored_as(stream: TokenStream) -> tuple[str, slice]:
    """The array in a shard that holds a stream, and the stream's codebooks there; coarse and fine share an array."""
    if stream == INSTRUMENTAL_COARSE:
        return INSTRUMENTAL_CODES, slice(0, COARSE_CODEBOOKS)
    if stream == INSTRUMENTAL_FINE:
        return INSTRUMENTAL_CODES, slice(COARSE_CODEBOOKS, COARSE_CODEBOOKS + INSTRUMENTAL_FINE.codebooks)
    return stream.name, slice(0, stream.codebooks)


class ClipBatches(Dataset[TokenBatch]):
    """A split as a map from :class:`BatchRequest` to :class:`TokenBatch`, or to a :class:`Parcel` in a loader worker.

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
        stored = [stream for stream in STREAMS.values() if stored_as(stream)[0] in manifest.streams]
        names = [stream.name for stream in stored] if streams is None else list(streams)
        missing = set(names) - {stream.name for stream in stored}
        if missing or not names:
            raise RequestError(
                f"split {manifest.split!r} holds no stream "
                f"{', '.join(map(repr, sorted(missing))) or '(none was requested)'}\n"
                f"it holds {', '.join(stream.name for stream in stored)}; prepare shards with the stream, "
                "or leave it out of the stage's conditions and of data.streams"
            )
        self.streams = [stream_named(name) for name in names]
        self.duration_s = manifest.duration_s if crop_s is None else crop_s
        self._ends = np.cumsum([shard.clips for shard in manifest.shards], dtype=np.int64)
        self._grid_hz = round(1 / FRAME_GRID_S)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, request: BatchRequest) -> Any:
        """Gather the clips of one batch: each stream ``[B, K, T]``, int64 or in a worker uint16."""
        if not isinstance(request, BatchRequest):
            raise RequestError(
                f"the order of clips was replaced: a batch was asked for by {type(request).__name__} {request!r:.40}\n"
                "leave trainer.use_distributed_sampler false, and samplers and loaders of TokenShards as they are"
            )
        in_worker = get_worker_info() is not None
        dtype = np.uint16 if in_worker else np.int64
        streams = self._streams(request, dtype)
        other = None if request.other is None else self._streams(request.other, dtype)
        clip_ids = [self.reader.clip_ids[clip] for clip in request.clips]
        return Parcel(streams, other, clip_ids) if in_worker else as_batch(streams, other, clip_ids)

    def _streams(self, request: BatchRequest, dtype: type[np.integer[Any]]) -> Ids:
        """Streams ``[B, K, T]``, cast and cropped in one pass."""
        shards = np.searchsorted(self._ends, request.clips, side="right")
        counts = [shard.clips for shard in self.reader.manifest.shards]
        rows = [
            (self.reader.arrays(int(shard)), int(clip - self._ends[shard]) + counts[shard], int(start))
            for shard, clip, start in zip(shards, request.clips, request.starts, strict=True)
        ]
        batch: Ids = {}
        for stream in self.streams:
            array, codebooks = stored_as(stream)
            frames, per_step = stream.frames(self.duration_s), stream.rate_hz // self._grid_hz
            ids = np.empty((len(rows), stream.codebooks, frames), dtype=dtype)
            for number, (arrays, row, start) in enumerate(rows):
                clip = arrays[array][row]
                crop = (codebooks, slice(start * per_step, start * per_step + frames))
                ids[number] = clip[crop[2 - clip.ndim :]]  # stored are [K, T], [T] for one codebook, [] for a tag
            batch[stream.name] = ids
        return batch


def as_batch(streams: Ids, other: Ids | None, clip_ids: list[str]) -> TokenBatch:
    """A batch of int64 tensors from integer arrays ``[B, K, T]``."""

    def tensors(arrays: Ids) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(ids.astype(np.int64, copy=False)) for name, ids in arrays.items()}

    if other is None:
        return TokenBatch(tensors(streams), clip_ids)
    return PairedBatch(tensors(streams), clip_ids, tensors(other))


@dataclass(frozen=True)
class Parcel:
    """A batch that pickles as 16-bit ids and unpickles as a :class:`TokenBatch`."""

    streams: Ids
    other: Ids | None
    clip_ids: list[str]

    def __reduce__(self) -> tuple[Any, ...]:
        return as_batch, (self.streams, self.other, self.clip_ids)


def check_split(reader: ShardReader) -> None:
    """Read every id of a split once; RequestError names the shard, stream and clip of an invalid one."""
    for number, info in enumerate(reader.manifest.shards):
        for name, rows in reader.arrays(number).items():
            vocabulary = STORED_STREAMS[name].vocabulary
            if int(rows.max()) < vocabulary:
                continue
            row = int((rows.reshape(info.clips, -1) >= vocabulary).any(axis=1).argmax())
            raise RequestError(
                f"{info.file} of split {reader.manifest.split!r}: clip {info.clip_ids[row]!r} has the id "
                f"{int(rows[row].max())} in {name!r}, allowed are 0..{vocabulary - 1}\n"
                "the shard is damaged or was made by another tokenizer: prepare it again"
            )


def check_manifests(manifests: Mapping[str, Manifest], root: str) -> None:
    """RequestError unless the splits have the same tokenizers and clips of one length; shared songs are warned of."""
    splits = list(manifests)
    for split in splits[1:]:
        first, other = manifests[splits[0]], manifests[split]
        name = f"the split {split!r} of {root}"
        problem = tokenizer_difference(
            name, other.tokenizers, f"the split {splits[0]!r}", first.tokenizers, verb="prepared"
        )
        for what in ("resampler", "duration_s"):
            a, b = getattr(first, what), getattr(other, what)
            if problem is None and a != b:
                problem = f"{name} was prepared with a different {what} ({a!r} and {b!r}) than the split {splits[0]!r}"
        if problem is not None:
            raise RequestError(f"{problem}\ntheir tokens do not mean the same: prepare both in one run")
        for earlier in splits[: splits.index(split)]:
            shared = sorted(set(other.songs()) & set(manifests[earlier].songs()))
            if shared:
                rank_zero_warn(
                    f"{len(shared)} songs of {root} are in {earlier!r} and in {split!r} (first: {shared[0]!r}): "
                    f"scores of {split!r} are not those of unknown songs"
                )
