"""Shards: tokenized clips on disk, in a local folder or below a remote address.

A split is a folder: ``shard-00000.safetensors`` ... and ``manifest.json``. A shard holds uint16 arrays with one row for
each clip: ``vocal_semantic [n, 500]``, ``instrumental_semantic [n, 500]``, ``instrumental_codes [n, 8, 750]``, and
optionally ``vocal_acoustic [n, 8, 750]`` and ``style [n]``. A clip takes about 14 kB, the paper's corpus 0.7 GB.
"""

from __future__ import annotations

from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.files import expanded
from hafm_lightning.shards.manifest import MANIFEST_NAME as MANIFEST_NAME
from hafm_lightning.shards.manifest import REQUIRED_STREAMS as REQUIRED_STREAMS
from hafm_lightning.shards.manifest import SPLITS as SPLITS
from hafm_lightning.shards.manifest import STORED_STREAMS as STORED_STREAMS
from hafm_lightning.shards.manifest import Ids as Ids
from hafm_lightning.shards.manifest import Manifest as Manifest
from hafm_lightning.shards.manifest import ShardInfo as ShardInfo
from hafm_lightning.shards.manifest import clip_id as clip_id
from hafm_lightning.shards.manifest import row_shape as row_shape
from hafm_lightning.shards.manifest import song_of as song_of
from hafm_lightning.shards.manifest import stream_description as stream_description
from hafm_lightning.shards.reader import ShardReader as ShardReader
from hafm_lightning.shards.reader import map_shard as map_shard
from hafm_lightning.shards.remote import RemoteSource
from hafm_lightning.shards.writer import write_shard as write_shard

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
        return _of_split(ShardReader(RemoteSource(str(root), split, cache_dir)), split, str(root))
    folder = expanded(root)
    if not folder.is_dir():
        raise RequestError(
            f"data folder {folder} does not exist{'' if folder.is_absolute() else f' (looked for in {Path.cwd()})'}; "
            "give the folder that `prepare` wrote as `root`"
        )
    if not (folder / split / MANIFEST_NAME).is_file():
        present = [name for name in SPLITS if (folder / name / MANIFEST_NAME).is_file()]
        raise RequestError(
            f"{folder} has no split {split!r} with a {MANIFEST_NAME} (found: {', '.join(present) or 'none'}); "
            "run `python -m hafm_lightning prepare` to its end, or choose another split"
        )
    return _of_split(ShardReader(folder / split), split, str(folder))


def _of_split(reader: ShardReader, split: str, root: str) -> ShardReader:
    """The reader; RequestError if its manifest is another split's."""
    if split in SPLITS and reader.manifest.split != split:
        raise RequestError(
            f"{root}/{split}: its manifest belongs to the split {reader.manifest.split!r}\n"
            "the folder was copied or renamed: put the folders back, or prepare the shards again"
        )
    return reader
