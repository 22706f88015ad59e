"""Writing shards: arrays in the order of their names, without metadata, so that the same clips give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hafm_lightning.files import sha256_of, write_atomic
from hafm_lightning.shards.manifest import REQUIRED_STREAMS, Ids, ShardInfo, rows_problem, songs_of


def write_shard(path: Path, arrays: Mapping[str, Ids], clip_ids: Sequence[str], duration_s: float) -> ShardInfo:
    """Write one shard, completely or not at all (OSError).

    ``arrays``: stored name -> uint16 ids, a row for each of ``clip_ids`` (:func:`row_shape`); ValueError if they do not
    fit their streams. ``duration_s``: length of the clips.
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
