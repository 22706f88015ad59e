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

CLIP_LOG = "clips.csv"
QUARANTINE_LOG = "quarantine.csv"

Entry = dict[str, Any]


@dataclass
class LogCounts:
    """Counts over all clips of the log."""

    candidates: int = 0  # all clips
    dropped: int = 0  # clips that break a rule
    first: Counter[str] = field(default_factory=Counter)  # rule -> clips whose first broken rule it is
    every: Counter[str] = field(default_factory=Counter)  # rule -> clips that break it
    # Histogram of the clips' loudness.
    loudness: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def write_logs(
    root: Path,
    logs: Iterable[list[Entry]],
    quarantined: Sequence[dict[str, str]],
    left_out: Sequence[dict[str, str]],
    loudness_edges: npt.NDArray[np.float64],
) -> LogCounts:
    """Write the logs into ``root``, each completely or not at all, and count.

    ``logs``: entries of the clips, shard by shard; ``quarantined`` and ``left_out``: entries with ``name``, ``reason``.
    """
    counts = LogCounts(loudness=np.zeros(len(loudness_edges) - 1, np.int64))
    with atomic_file(root / CLIP_LOG) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for entries in logs:
            rows = [_row(entry) for entry in entries]
            if rows and writer is None:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
            if writer is not None:
                writer.writerows(rows)
            _count(counts, entries, loudness_edges)
    with atomic_file(root / QUARANTINE_LOG) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("what", "name", "reason"), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"what": "quarantined", **entry} for entry in quarantined)
        writer.writerows({"what": "left out", **entry} for entry in left_out)
    _as_parquet(root / CLIP_LOG)
    return counts


def _row(entry: Entry) -> Entry:
    return {**{key: value for key, value in entry.items() if key != "measurements"}, **entry["measurements"]}


def _count(counts: LogCounts, entries: list[Entry], loudness_edges: npt.NDArray[np.float64]) -> None:
    broken = [entry["dropped_by"].split() for entry in entries]
    counts.candidates += len(entries)
    counts.dropped += sum(bool(rules) for rules in broken)
    counts.first.update(rules[0] for rules in broken if rules)
    counts.every.update(rule for rules in broken for rule in rules)
    loudness = [entry["measurements"]["loudness_lufs"] for entry in entries]
    clipped = np.clip(loudness, loudness_edges[0], loudness_edges[-1])
    counts.loudness += np.histogram(clipped, loudness_edges)[0].astype(np.int64)


def _as_parquet(log: Path) -> None:
    """The same table in columns; left out if pyarrow is not installed."""
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
