"""The logs of a preparation: ``clips.csv`` (and ``clips.parquet`` where pyarrow is installed), ``quarantine.csv``."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.files import atomic_file
from hafm_lightning.preparation.report.cautions import StemCounts

Edges = npt.NDArray[np.float64]


@dataclass
class LogCounts:
    """Counts over all clips of the log."""

    loudness: npt.NDArray[np.int64]  # histogram of the clips' loudness
    candidates: int = 0  # all clips
    dropped: int = 0  # clips that break a rule
    first: Counter[str] = field(default_factory=Counter)  # rule -> clips whose first broken rule it is
    every: Counter[str] = field(default_factory=Counter)  # rule -> clips that break it
    stems: StemCounts = field(default_factory=StemCounts)

    def add(self, entries: list[dict[str, Any]], loudness_edges: Edges) -> None:
        """Count the entries of one shard."""
        broken = [entry["dropped_by"].split() for entry in entries]
        self.candidates += len(entries)
        self.dropped += sum(map(bool, broken))
        self.first.update(rules[0] for rules in broken if rules)
        self.every.update(rule for rules in broken for rule in rules)
        self.stems.add(entry["measurements"] for entry in entries)
        self.loudness += counts_between([entry["measurements"]["loudness_lufs"] for entry in entries], loudness_edges)


def counts_between(values: Sequence[float], edges: Edges) -> npt.NDArray[np.int64]:
    """Counts of the values between edges ``[n + 1]``: ``[n]``; values outside count in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(np.int64)


def write_logs(
    root: Path,
    logs: Iterable[list[dict[str, Any]]],
    quarantined: Sequence[dict[str, str]],
    left_out: Sequence[dict[str, str]],
    loudness_edges: Edges,
) -> LogCounts:
    """Write the logs into ``root``, each completely or not at all, and count.

    ``logs``: entries of the clips, shard by shard; ``quarantined`` and ``left_out``: entries with ``name``, ``reason``.
    """
    counts = LogCounts(loudness=np.zeros(len(loudness_edges) - 1, np.int64))
    with atomic_file(root / "clips.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for entries in logs:
            rows = [entry | entry["measurements"] for entry in entries]
            if rows and writer is None:
                names = [name for name in rows[0] if name != "measurements"]
                writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
            if writer is not None:
                writer.writerows(rows)
            counts.add(entries, loudness_edges)
    with atomic_file(root / "quarantine.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("what", "name", "reason"), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"what": "quarantined", **entry} for entry in quarantined)
        writer.writerows({"what": "left out", **entry} for entry in left_out)
    _as_parquet(root / "clips.csv")
    return counts


def _as_parquet(log: Path) -> None:
    """The same table in columns; left out if pyarrow is not installed or there is no clip."""
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        return
    if log.stat().st_size == 0:
        return
    names = {name: pyarrow.string() for name in ("clip", "split", "song", "dropped_by", "genre", "licence")}
    options = pyarrow.csv.ConvertOptions(column_types={**names, "kept": pyarrow.bool_()}, strings_can_be_null=False)
    with atomic_file(log.with_suffix(".parquet")) as path:
        lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(log, parse_options=lines, convert_options=options), path)
