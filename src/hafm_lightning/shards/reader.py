"""Reading shards: random access to clips in memory-mapped files.

Choices:

* Files are mapped with numpy instead of ``safe_open``: a map works after a fork, and reading a row touches the pages of
  that row only.
* Ids are checked against the vocabularies when they are written and by :meth:`ShardReader.verify`, not at every read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.errors import RequestError
from hafm_lightning.files import TEMPORARY_PREFIX, sha256_of
from hafm_lightning.shards.manifest import STORED_STREAMS, Ids, Manifest, ShardInfo, rows_problem, songs_of
from hafm_lightning.shards.remote import RemoteSource


def map_shard(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Memory-map the arrays of a shard; RequestError if the file is missing, truncated or not a shard."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= size - 8:
                raise ValueError("header")
            header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))[8 + header_bytes :]
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] != "U16" or not 0 <= begin <= end <= len(data):
                raise ValueError(name)
            # The format aligns its data to 8 bytes, so that a uint16 never straddles two words.
            arrays[name] = data[begin:end].view("<u2").reshape(entry["shape"])
    except FileNotFoundError:
        raise RequestError(f"shard {path} is missing; run `prepare` again to finish the folder") from None
    except OSError as error:
        raise RequestError(f"shard {path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RequestError(f"{path} is damaged or not a shard; run `prepare` again, or fetch the file again") from error
    return arrays


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
            arrays = map_shard(path)
            if set(arrays) != set(self.manifest.streams):
                raise RequestError(f"{path} holds {sorted(arrays)}, its manifest lists {sorted(self.manifest.streams)}")
            for name, rows in arrays.items():
                problem = rows_problem(name, rows, info.clips, self.manifest.duration_s, check_ids=False)
                if problem:
                    raise RequestError(f"{path}: {problem}")
            self._maps[shard] = arrays
        return self._maps[shard]

    def _file(self, shard: ShardInfo) -> Path:
        return self.source / shard.file if isinstance(self.source, Path) else self.source.path(shard)

    def verify(self) -> list[str]:
        """Read every byte; a line for each problem: missing or changed files, wrong shapes or ids, repeated clips."""
        problems = []
        for number, info in enumerate(self.manifest.shards):
            try:
                path = self._file(info)
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
