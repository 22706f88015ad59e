"""Small shards for tests: random ids, a fraction of a second a clip."""

from pathlib import Path

import numpy as np

from hafm_lightning.shards import (
    REQUIRED_STREAMS,
    STORED_STREAMS,
    Manifest,
    clip_id,
    row_shape,
    stream_description,
    write_shard,
)

TINY_DURATION_S = 0.4


def write_tiny_split(
    root: Path, split: str, counts=(5, 3), *, duration_s=TINY_DURATION_S, names=REQUIRED_STREAMS, seed=0, sha256="a1"
) -> dict[str, np.ndarray]:
    """Write a split with ``counts`` clips a shard; returns its arrays, all shards together."""
    generator = np.random.default_rng([seed, len(split)])
    infos, parts = [], []
    for number, clips in enumerate(counts):
        arrays = {
            name: generator.integers(
                0, STORED_STREAMS[name].vocabulary, (clips, *row_shape(STORED_STREAMS[name], duration_s)), np.uint16
            )
            for name in names
        }
        ids = [f"{split} {number}-{row}@0.00" for row in range(clips)]
        infos.append(write_shard(root / split / f"shard-{number:05d}.safetensors", arrays, ids, duration_s))
        parts.append(arrays)
    Manifest(
        split=split,
        duration_s=duration_s,
        streams={name: stream_description(STORED_STREAMS[name]) for name in names},
        tokenizers={
            "semantic": {"kind": "offline-semantic", "sha256": sha256},
            "acoustic": {"kind": "offline-acoustic", "sha256": "b2"},
        },
        resampler="soxr-hq",
        preparation={},
        styles=["Rock"] if "style" in names else [],
        shards=infos,
    ).save(root / split)
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def write_tiny_shards(root: Path, train=(5, 3), validation=(3, 2), test=(2, 2), **settings) -> Path:
    """Write the three splits under ``root`` and return it."""
    for split, counts in (("train", train), ("validation", validation), ("test", test)):
        write_tiny_split(root, split, counts, **settings)
    return root


def random_rows(clips: int, seed: int, names=REQUIRED_STREAMS) -> dict[str, np.ndarray]:
    """Random ids for clips of 10 s, stored name -> uint16 ``[clips, ...]``."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(
            0, STORED_STREAMS[name].vocabulary, (clips, *row_shape(STORED_STREAMS[name], 10.0)), dtype=np.uint16
        )
        for name in names
    }


def write_full_split(folder: Path, counts=(3, 2), names=REQUIRED_STREAMS) -> list[dict[str, np.ndarray]]:
    """Write a split of clips of 10 s; returns the arrays of each shard."""
    infos, rows = [], []
    for number, clips in enumerate(counts):
        arrays = random_rows(clips, seed=number, names=names)
        ids = [clip_id(f"song {number}", 10.0 * i) for i in range(clips)]
        infos.append(write_shard(folder / f"shard-{number:05d}.safetensors", arrays, ids, 10.0))
        rows.append(arrays)
    manifest = Manifest(
        split=folder.name,
        duration_s=10.0,
        streams={name: stream_description(STORED_STREAMS[name]) for name in names},
        tokenizers={"semantic": {"kind": "fake"}, "acoustic": {"kind": "fake"}},
        resampler="soxr-hq",
        preparation={"hop_s": 5.0},
        styles=["Rock"],
        shards=infos,
    )
    manifest.save(folder)
    return rows
