"""Reading shards: random access to clips in memory-mapped files.

Choices:

* Files are mapped, instead of opened by ``safe_open``: a map works after a fork, and reading a row touches the pages of
  that row only. PyTorch maps them, since it keeps no file open (numpy's maps keep one each, and systems allow few).
* Before its first use a file is compared with the manifest's sha256 (:mod:`.verified`), so that a flipped bit, two
  shards that were swapped, or a shard of another split cannot be trained on.
* Ids are checked against the vocabularies when they are written and by :meth:`ShardReader.verify`, not at every read.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning import limits
from hafm_lightning.errors import RequestError
from hafm_lightning.files import TEMPORARY_PREFIX, sha256_of
from hafm_lightning.shards.manifest import STORED_STREAMS, Ids, Manifest, ShardInfo, rows_problem, songs_of
from hafm_lightning.shards.remote import RemoteSource
from hafm_lightning.shards.verified import has_sha256, was_verified
from hafm_lightning.untrusted import child, open_file, parse_json

ANNOUNCED_BYTES = 1_000_000_000
"""Splits larger than this are compared with their sha256 after a line that says so."""
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def map_shard(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Memory-map the arrays of a shard; RequestError if the file is missing, truncated or not a shard."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        with open_file(path, what="a shard", advice="run `prepare` again to finish the folder") as file:
            size = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(size - 8, limits.current().json_bytes):
                raise ValueError("header")
            header = parse_json(file.read(header_bytes), path, advice="")
        header.pop("__metadata__", None)
        data = _mapped(path, size)[8 + header_bytes :]
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] != "U16" or not 0 <= begin <= end <= len(data):
                raise ValueError(name)
            # The format aligns its data to 8 bytes, so that a uint16 never straddles two words.
            arrays[name] = data[begin:end].view("<u2").reshape(entry["shape"])
    except OSError as error:
        raise RequestError(f"shard {path} cannot be read: {error.strerror}") from error
    except _DAMAGED as error:
        if isinstance(error, RequestError) and "is damaged" not in str(error):
            raise
        raise RequestError(f"{path} is damaged or not a shard; run `prepare` again, or fetch the file again") from error
    return arrays


def _mapped(path: Path, size: int) -> np.ndarray[Any, Any]:
    """The bytes of a file, read-only."""
    name = str(path)
    if name.isprintable() and os.name == "posix":
        data = torch.from_file(name, shared=False, size=size, dtype=torch.uint8).numpy()
        data.flags.writeable = False
        return data
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


class ShardReader:
    """Random access to the clips of a split.

    ``reader[i]`` is a dict of uint16 arrays ``[K, T]``, read-only views into the mapped file: ``vocal_semantic
    [1, 500]``, ``instrumental_codes [8, 750]``, ... Shards are opened at their first use. A reader can be pickled and
    works after a fork.
    """

    def __init__(self, source: Path | RemoteSource) -> None:
        """``source``: the split, as a local folder or below a remote root."""
        self.source = source
        self._maps: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
        self._announced = False
        self.manifest = Manifest.load(source) if isinstance(source, Path) else source.manifest()
        self.clip_ids = self.manifest.clip_ids()  # in order
        self._ends = np.cumsum([shard.clips for shard in self.manifest.shards], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # open maps would be pickled as copies of the data

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
        """The mapped arrays of one shard, in the file's shapes; RequestError if they do not fit the manifest."""
        if shard not in self._maps:
            info = self.manifest.shards[shard]
            path = self._file(info)
            arrays = self._checked_arrays(path, info)
            if isinstance(self.source, Path):  # remote shards are compared when they are fetched
                self._check_bytes(path, info)
            self._maps[shard] = arrays
        return self._maps[shard]

    def _checked_arrays(self, path: Path, info: ShardInfo) -> dict[str, np.ndarray[Any, Any]]:
        arrays = map_shard(path)
        if set(arrays) != set(self.manifest.streams):
            raise RequestError(f"{path} holds {sorted(arrays)}, its manifest lists {sorted(self.manifest.streams)}")
        for name, rows in arrays.items():
            problem = rows_problem(name, rows, info.clips, self.manifest.duration_s, check_ids=False)
            if problem:
                raise RequestError(f"{path}: {problem}")
        return arrays

    def _check_bytes(self, path: Path, info: ShardInfo) -> None:
        """RequestError unless the file has the manifest's sha256."""
        try:
            if was_verified(path, info.sha256):
                return
            self._announce()
            if has_sha256(path, info.sha256):
                return
        except OSError as error:
            raise RequestError(f"shard {path} cannot be read: {error.strerror}") from error
        raise RequestError(
            f"{path}: the bytes changed since they were written (sha256), or the file belongs to another split\n"
            "fetch it again, or prepare the shards again; `prepare --verify` lists all such files"
        )

    def _announce(self) -> None:
        """One line, once, where hashing takes a while."""
        if self._announced or not isinstance(self.source, Path):
            return
        self._announced = True
        sizes = []
        for shard in self.manifest.shards:
            with suppress(OSError):
                sizes.append((self.source / shard.file).stat().st_size)
        if sum(sizes) > ANNOUNCED_BYTES:
            line = f"{self.source}: comparing {len(sizes)} shards ({sum(sizes) / 1e9:.1f} GB) with their sha256, once"
            print(line, file=sys.stderr, flush=True)

    def _file(self, shard: ShardInfo) -> Path:
        if isinstance(self.source, Path):
            return child(self.source, shard.file, "a shard in the manifest")
        return self.source.path(shard)

    def verify(self) -> list[str]:
        """Read every byte; a line for each problem: missing or changed files, wrong shapes or ids, repeated clips."""
        problems = []
        for info in self.manifest.shards:
            try:
                path = self._file(info)
                arrays = self._checked_arrays(path, info)
                if sha256_of(path) != info.sha256:
                    problems.append(f"{path}: the bytes changed since they were written (sha256)")
            except RequestError as error:
                problems.append(str(error).splitlines()[0])
                continue
            except OSError as error:
                problems.append(f"{path}: cannot be read ({error.strerror})")
                continue
            wrong = [rows_problem(name, rows, info.clips, self.manifest.duration_s) for name, rows in arrays.items()]
            problems += [f"{path}: {problem}" for problem in wrong if problem]
            if songs_of(info.clip_ids) != info.songs:
                problems.append(f"{path}: the manifest's songs do not match its clip ids")
        repeated = len(self.clip_ids) - len(set(self.clip_ids))
        if repeated:
            problems.append(f"{repeated} clip ids of {self.manifest.split!r} occur twice")
        if isinstance(self.source, Path):
            listed = {shard.file for shard in self.manifest.shards}
            for path in sorted(self.source.iterdir()):
                if path.name.startswith(TEMPORARY_PREFIX):
                    problems.append(f"{path}: unfinished file of a run that was stopped; delete it")
                elif path.suffix == ".safetensors" and path.name not in listed:
                    problems.append(f"{path}: not in the manifest")
        return problems
