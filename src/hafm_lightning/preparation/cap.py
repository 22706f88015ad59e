"""A seeded choice of the clips of a split, where the configuration asks for fewer than the preparation has kept.

The paper trains on 44,547 clips and validates on 5,497. The quality filter decides only at the end how many clips there
are, so that the choice is made from finished shards: the clips whose hash with the seed is smallest. It depends on the
seed and the names of the clips alone. A shard that loses clips is written again as ``kept-...`` beside the whole one,
which a continued run still finds.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.shards import ShardInfo, map_shard, write_shard


def chosen_clips(clip_ids: Sequence[str], cap: int, seed: int) -> set[str]:
    """``cap`` of the clips, each with the same probability; all if there are no more."""
    ranked = sorted(clip_ids, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "replace")).digest())
    return set(ranked[:cap])


def capped(shards: Sequence[ShardInfo], folder: Path, cap: int | None, seed: int, duration_s: float) -> list[ShardInfo]:
    """The shards of a split in ``folder`` with at most ``cap`` clips; a line on stderr where there are fewer."""
    names = [name for shard in shards for name in shard.clip_ids]
    if cap is None:
        return list(shards)
    if len(names) < cap:
        print(f"{folder.name}: {len(names)} clips after the quality filter, {cap} were asked for", file=sys.stderr)
    keep = chosen_clips(names, cap, seed)
    left = []
    for shard in shards:
        rows = [row for row, name in enumerate(shard.clip_ids) if name in keep]
        if len(rows) == shard.clips:
            left.append(shard)
        elif rows:
            arrays = {name: ids[rows] for name, ids in map_shard(folder / shard.file).items()}
            path = folder / shard.file.replace("shard-", "kept-")
            left.append(write_shard(path, arrays, [shard.clip_ids[row] for row in rows], duration_s))
    return left
