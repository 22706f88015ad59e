"""Writing shards: the same clips give the same bytes.

Arrays lie in the file in the order of their names, without free metadata. Their description is in the manifest,
together with the sha256 of every shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hafm_lightning.files import sha256_of, write_atomic
from hafm_lightning.shards.manifest import REQUIRED_STREAMS, Ids, ShardInfo, rows_problem, songs_of


def write_shard(path: Path, arrays: Mapping[str, Ids], clip_ids: Sequence[str], duration_s: float) -> ShardInfo:
    """Write one shard, completely or not at all; the same clips give the same bytes.

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
