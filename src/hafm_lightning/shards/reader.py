"""Shards: pre-tokenized clips on disk, read by memory-mapped random access.

A split is a folder: ``shard-00000.safetensors`` ... and ``manifest.json``. A shard holds uint16 arrays of fixed shape,
one row a clip: ``vocal_semantic [n, 500]``, ``instrumental_semantic [n, 500]``, ``instrumental_codes [n, 8, 750]``, and
optionally ``vocal_acoustic [n, 8, 750]`` and ``style [n]``. About 14 kB a clip, so that the paper's whole corpus is
0.7 GB and lives in the page cache.

Choices:

* The same clips give the same bytes: arrays lie in the file in the order of their names, without free metadata. What
  describes them is in the manifest, together with the sha256 of every shard.
* The reader maps files with numpy instead of ``safe_open``, because a map survives fork, a reader survives pickling
  (it opens its files again), and reading one row touches the pages of that row only.
* Ids are checked against the vocabularies by :meth:`ShardReader.verify` and when written, not at every read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hafm_lightning.errors import RequestError
from hafm_lightning.files import TEMPORARY_PREFIX, sha256_of, write_atomic
from hafm_lightning.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    REQUIRED_STREAMS,
    SPLITS,
    STORED_STREAMS,
    Manifest,
    ShardInfo,
    clip_id,
    row_shape,
    song_of,
    songs_of,
    stream_description,
)

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "REQUIRED_STREAMS",
    "SPLITS",
    "STORED_STREAMS",
    "FolderSource",
    "Ids",
    "Manifest",
    "ShardInfo",
    "ShardReader",
    "ShardSource",
    "clip_id",
    "map_shard",
    "open_shards",
    "row_shape",
    "rows_problem",
    "song_of",
    "songs_of",
    "stream_description",
    "write_shard",
]

Ids = NDArray[np.uint16]


def write_shard(path: Path, arrays: Mapping[str, Ids], clip_ids: Sequence[str], duration_s: float) -> ShardInfo:
    """Write one shard, whole or not at all; the same clips give the same bytes.

    Args:
        path: Final name, ``.../shard-00000.safetensors``.
        arrays: Stored name -> uint16 ids, one row a clip (:func:`row_shape`).
        clip_ids: One id a row.
        duration_s: Length of the clips, in seconds.

    Raises:
        ValueError: Names, shapes, dtypes or ids do not fit the streams.
        OSError: The disk is full or not writable; nothing is left under ``path``.
    """
    from safetensors.numpy import save

    missing = [name for name in REQUIRED_STREAMS if name not in arrays]
    if missing or not clip_ids or len(set(clip_ids)) != len(clip_ids):
        raise ValueError(f"{path}: a shard needs at least one clip, distinct ids and {', '.join(REQUIRED_STREAMS)}")
    for name, rows in arrays.items():
        problem = rows_problem(name, rows, len(clip_ids), duration_s)
        if problem:
            raise ValueError(f"{path}: {problem}")
    content = save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    write_atomic(path, content)
    return ShardInfo(path.name, len(clip_ids), sha256_of(path), list(clip_ids), songs_of(clip_ids))


def rows_problem(name: str, rows: np.ndarray[Any, Any], clips: int, duration_s: float) -> str:
    """What is wrong with a stored array, or an empty string."""
    stream = STORED_STREAMS.get(name)
    if stream is None:
        return f"unknown stream {name!r}; known: {', '.join(STORED_STREAMS)}"
    expected = (clips, *row_shape(stream, duration_s))
    if rows.dtype != np.uint16 or rows.shape != expected:
        return f"stream {name!r} is {rows.dtype} {list(rows.shape)}, expected uint16 {list(expected)}"
    if rows.size and int(rows.max()) >= stream.vocabulary:
        return f"stream {name!r} has id {int(rows.max())}, allowed 0..{stream.vocabulary - 1}"
    return ""


def map_shard(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Memory-map the arrays of a safetensors file without reading them.

    Raises:
        RequestError: The file is missing, cut short or not a shard.
    """
    damaged = f"{path} is damaged or not a shard; run `prepare` again, or fetch the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= size - 8:
                raise RequestError(damaged)
            header = json.loads(file.read(header_bytes))
    except FileNotFoundError:
        raise RequestError(f"shard {path} is missing; run `prepare` again to finish the folder") from None
    except OSError as error:
        raise RequestError(f"shard {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(damaged) from error
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        whole = np.memmap(path, dtype=np.uint8, mode="r")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if entry["dtype"] != "U16" or not 0 <= begin <= end <= size - 8 - header_bytes:
                raise RequestError(f"{damaged} (stream {name!r})")
            body = whole[8 + header_bytes + begin : 8 + header_bytes + end]
            # The format aligns its data to 8 bytes, so that a view as uint16 never straddles.
            arrays[name] = np.asarray(body).view("<u2").reshape(entry["shape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise error if isinstance(error, RequestError) else RequestError(damaged) from error
    return arrays


class ShardSource(Protocol):
    """Where a split's files come from: a folder, or a remote root with a local cache (``remote.py``)."""

    def manifest(self) -> Manifest:
        """The split's manifest."""

    def path(self, shard: ShardInfo) -> Path:
        """A local file with the shard's bytes."""


@dataclass(frozen=True)
class FolderSource:
    """A split in a local folder."""

    folder: Path

    def manifest(self) -> Manifest:
        """The folder's manifest."""
        return Manifest.load(self.folder)

    def path(self, shard: ShardInfo) -> Path:
        """The shard's file in the folder."""
        return self.folder / shard.file


@dataclass
class ShardReader:
    """Random access to the clips of a split.

    ``reader[i]`` is a dict of uint16 arrays ``[K, T]``, read-only views into the mapped file: ``vocal_semantic
    [1, 500]``, ``instrumental_semantic [1, 500]``, ``instrumental_codes [8, 750]``, and where the shards hold them
    ``vocal_acoustic [8, 750]`` and ``style [1, 1]``. Shards are opened when first touched. A reader may be pickled,
    and used after a fork.

    Attributes:
        source: The split's folder, or another :class:`ShardSource`.
    """

    source: ShardSource | Path | str
    _maps: dict[int, dict[str, np.ndarray[Any, Any]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.source, str | Path):
            self.source = FolderSource(Path(self.source))
        self.manifest = self.source.manifest()
        self._ends = np.cumsum([shard.clips for shard in self.manifest.shards], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "clip_ids"}
        return state | {"_maps": {}}  # open maps would be pickled as copies of the data

    @cached_property
    def clip_ids(self) -> list[str]:
        """Id of every clip, in order."""
        return self.manifest.clip_ids()

    def __len__(self) -> int:
        return self.manifest.clips

    def __getitem__(self, index: int) -> dict[str, Ids]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[shard]) + self.manifest.shards[shard].clips
        return {
            name: rows[row].reshape(STORED_STREAMS[name].codebooks, -1) for name, rows in self.arrays(shard).items()
        }

    def arrays(self, shard: int) -> dict[str, np.ndarray[Any, Any]]:
        """The mapped arrays of one shard, in the file's shapes; RequestError where they do not fit the manifest."""
        if shard not in self._maps:
            info = self.manifest.shards[shard]
            path = self._source().path(info)
            arrays = map_shard(path)
            if set(arrays) != set(self.manifest.streams):
                raise RequestError(f"{path} holds {sorted(arrays)}, its manifest says {sorted(self.manifest.streams)}")
            for name, rows in arrays.items():
                expected = (info.clips, *row_shape(STORED_STREAMS[name], self.manifest.duration_s))
                if rows.shape != expected:
                    raise RequestError(f"{path}: stream {name!r} is {list(rows.shape)}, expected {list(expected)}")
            self._maps[shard] = arrays
        return self._maps[shard]

    def verify(self) -> list[str]:
        """Read every byte and list what is wrong: missing or changed files, shapes, ids, doubled clips."""
        problems = []
        for number, info in enumerate(self.manifest.shards):
            try:
                path = self._source().path(info)
                arrays = self.arrays(number)
                if sha256_of(path) != info.sha256:
                    problems.append(f"{path}: the bytes changed since they were written (sha256)")
            except RequestError as error:
                problems.append(str(error).splitlines()[0])
                continue
            wrong = [rows_problem(name, rows, info.clips, self.manifest.duration_s) for name, rows in arrays.items()]
            problems += [f"{path}: {problem}" for problem in wrong if problem]
            if songs_of(info.clip_ids) != info.songs:
                problems.append(f"{path}: the manifest's songs do not match its clip ids")
        doubled = len(self.clip_ids) - len(set(self.clip_ids))
        if doubled:
            problems.append(f"{doubled} clip ids of {self.manifest.split!r} occur twice")
        if isinstance(self.source, FolderSource):
            listed = {shard.file for shard in self.manifest.shards}
            for path in sorted(self.source.folder.iterdir()):
                if path.name.startswith(TEMPORARY_PREFIX):
                    problems.append(f"{path}: unfinished file of a run that was stopped; delete it")
                elif path.suffix == ".safetensors" and path.name not in listed:
                    problems.append(f"{path}: not in the manifest")
        return problems

    def _source(self) -> ShardSource:
        assert not isinstance(self.source, str | Path)
        return self.source


def open_shards(root: str | Path, split: str, cache_dir: str | Path | None = None) -> ShardReader:
    """Open a split of a local folder or of a remote root (``s3://``, ``gs://``, ``hf://``, ``https://``).

    Args:
        root: What ``prepare`` wrote: the folder that holds ``train/``, ``validation/``, ``test/``.
        split: Name of the split.
        cache_dir: Where shards of a remote root are kept; by default ``$HAFM_CACHE`` or ``~/.cache/hafm_lightning``.
    """
    if "://" in str(root):
        from hafm_lightning.shards.remote import RemoteSource

        return ShardReader(RemoteSource(str(root), split, cache_dir))
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise RequestError(f"data folder {folder} does not exist; give the folder that `prepare` wrote as `root`")
    if not (folder / split / MANIFEST_NAME).is_file():
        found = [name for name in SPLITS if (folder / name / MANIFEST_NAME).is_file()]
        raise RequestError(
            f"{folder} has no split {split!r} with a {MANIFEST_NAME} (found: {', '.join(found) or 'none'}); "
            "run `python -m hafm_lightning prepare` to its end, or choose another split"
        )
    return ShardReader(folder / split)
