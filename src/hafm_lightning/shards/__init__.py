"""Shards: tokenized clips on disk, in a local folder or below a remote address.

A split is a folder: ``shard-00000.safetensors`` ... and ``manifest.json``. A shard holds uint16 arrays with one row for
each clip: ``vocal_semantic [n, 500]``, ``instrumental_semantic [n, 500]``, ``instrumental_codes [n, 8, 750]``, and
optionally ``vocal_acoustic [n, 8, 750]`` and ``style [n]``. A clip takes about 14 kB, the paper's corpus 0.7 GB.
"""

from __future__ import annotations

from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.shards.manifest import (
    MANIFEST_NAME,
    REQUIRED_STREAMS,
    SPLITS,
    STORED_STREAMS,
    Ids,
    Manifest,
    ShardInfo,
    clip_id,
    row_shape,
    song_of,
    stream_description,
)
from hafm_lightning.shards.reader import ShardReader, map_shard
from hafm_lightning.shards.remote import RemoteSource
from hafm_lightning.shards.writer import write_shard

__all__ = [
    "MANIFEST_NAME",
    "REQUIRED_STREAMS",
    "SPLITS",
    "STORED_STREAMS",
    "Ids",
    "Manifest",
    "ShardInfo",
    "ShardReader",
    "clip_id",
    "map_shard",
    "open_shards",
    "row_shape",
    "song_of",
    "stream_description",
    "write_shard",
]


def open_shards(root: str | Path, split: str, cache_dir: str | Path | None = None) -> ShardReader:
    """Open a split of the output of ``prepare``: a folder, or a remote root (``s3://``, ``gs://``, ``hf://``, ``https://``).

    ``cache_dir``: cache of remote shards; by default ``$HAFM_CACHE`` or ``~/.cache/hafm_lightning``.
    """
    if "://" in str(root):
        return ShardReader(RemoteSource(str(root), split, cache_dir))
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise RequestError(f"data folder {folder} does not exist; give the folder that `prepare` wrote as `root`")
    if not (folder / split / MANIFEST_NAME).is_file():
        present = [name for name in SPLITS if (folder / name / MANIFEST_NAME).is_file()]
        raise RequestError(
            f"{folder} has no split {split!r} with a {MANIFEST_NAME} (found: {', '.join(present) or 'none'}); "
            "run `python -m hafm_lightning prepare` to its end, or choose another split"
        )
    return ShardReader(folder / split)
