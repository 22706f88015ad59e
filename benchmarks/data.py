"""Clips a second of TokenShards on a corpus of the paper's size: 50,000 synthetic clips of 10 s, shuffled.

    python benchmarks/data.py --json benchmarks/results/data.json

Writes about 0.7 GB of shards under --root (kept and used again if they are there), reads them as training does and
prints a table: clips a second of wall time, and of CPU time, which means the same on a busy machine ("two workers'
worth of CPU" are two CPU seconds a second). A loader that collates items one by one is measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _facts import machine
from torch.utils.data import DataLoader, Dataset

from hafm_lightning.data_modules.token_shards import TokenShards
from hafm_lightning.shards import (
    REQUIRED_STREAMS,
    STORED_STREAMS,
    Manifest,
    ShardReader,
    open_shards,
    row_shape,
    stream_description,
    write_shard,
)
from hafm_lightning.tokens import CLIP_DURATION_S


def write_corpus(root: Path, clips: int, clips_a_shard: int = 2000) -> None:
    """Random shards of ``clips`` clips in the split ``train``, once."""
    folder = root / "train"
    if (folder / "manifest.json").is_file() and Manifest.load(folder).clips == clips:
        return
    generator = np.random.default_rng(0)
    shards = []
    for number, first in enumerate(range(0, clips, clips_a_shard)):
        size = min(clips_a_shard, clips - first)
        arrays = {
            name: generator.integers(
                0,
                STORED_STREAMS[name].vocabulary,
                (size, *row_shape(STORED_STREAMS[name], CLIP_DURATION_S)),
                dtype=np.uint16,
            )
            for name in REQUIRED_STREAMS
        }
        ids = [f"song {i}@0.00" for i in range(first, first + size)]
        shards.append(write_shard(folder / f"shard-{number:05d}.safetensors", arrays, ids, CLIP_DURATION_S))
    Manifest(
        split="train",
        duration_s=CLIP_DURATION_S,
        streams={name: stream_description(STORED_STREAMS[name]) for name in REQUIRED_STREAMS},
        tokenizers={"semantic": {"kind": "random"}, "acoustic": {"kind": "random"}},
        resampler="none",
        preparation={},
        styles=[],
        shards=shards,
    ).save(folder)


class ItemDataset(Dataset[dict[str, torch.Tensor]]):
    """What a plain map-style dataset does: one clip an item, collated by DataLoader."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(ids.astype(np.int64)) for name, ids in self.reader[index].items()}


def measure(name: str, loader: DataLoader[Any], seconds: float, batch_size: int) -> dict[str, Any]:
    """One row of the table: clips a second of wall time, and of CPU time of this process and the workers together."""
    cpu, batches = sum(os.times()[:4]), 0
    iterator = iter(loader)
    next(iterator)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        try:
            next(iterator)
        except StopIteration:
            iterator = iter(loader)
            continue
        batches += 1
    wall = time.perf_counter() - start
    workers = loader.num_workers
    del iterator, loader  # joins the workers, whose CPU time counts from then on
    gc.collect()
    cpu = sum(os.times()[:4]) - cpu
    clips = batches * batch_size
    return {
        "loader": name,
        "workers": workers,
        "clips_per_s": round(clips / wall),
        "clips_per_cpu_s": round(clips / cpu),
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=36)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "hafm-benchmark-shards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    write_corpus(options.root, options.clips)
    start = time.perf_counter()
    TokenShards(str(options.root), options.batch_size)._open("train")
    opening_s = time.perf_counter() - start

    rows = []
    for name, workers, settings in (
        ("TokenShards, whole clips", 0, {}),
        ("TokenShards, whole clips", 1, {}),
        ("TokenShards, whole clips", 2, {}),
        ("TokenShards, 3 s crops", 2, {"crop_s": 3.0}),
        ("TokenShards, semantic streams", 2, {"streams": ["vocal_semantic", "instrumental_semantic"]}),
    ):
        data = TokenShards(str(options.root), options.batch_size, workers=workers, **settings)
        rows.append(measure(name, data.train_dataloader(), options.seconds, options.batch_size))
    for workers in (0, 2):
        items = DataLoader(
            ItemDataset(open_shards(options.root, "train")), options.batch_size, shuffle=True, num_workers=workers
        )
        rows.append(measure("items collated", items, options.seconds, options.batch_size))

    print(f"{options.clips} clips of {CLIP_DURATION_S:g} s, batch {options.batch_size}, all streams, shuffled")
    print(f"opening and checking every id: {opening_s:.2f} s; {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'loader':<32}{'workers':>8}{'clips/s':>10}{'clips/CPU s':>13}")
    for row in rows:
        print(f"{row['loader']:<32}{row['workers']:>8}{row['clips_per_s']:>10,}{row['clips_per_cpu_s']:>13,}")
    if options.json:
        report = {
            "about": {
                "clips": options.clips,
                "batch_size": options.batch_size,
                **machine(),
            },
            "opening_s": round(opening_s, 3),
            "rows": rows,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
