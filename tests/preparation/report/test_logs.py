"""The logs: every clip and every unused song once, and counts of what they hold."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hafm_lightning.preparation.report.logs import counts_between, write_logs


def entry(clip: str, dropped_by: str, loudness_lufs: float) -> dict:
    measurements = {"loudness_lufs": loudness_lufs, "leakage": 0.25}
    return {"clip": clip, "kept": not dropped_by, "dropped_by": dropped_by, "measurements": measurements}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_clips_are_written_and_counted(tmp_path):
    shards = [[], [entry("a@0.00", "", -20.0), entry('b "live", 2@0.00', "leakage loudness", -200.0)]]
    shards.append([entry("c@0.00", "loudness", 3.0)])
    counts = write_logs(tmp_path, shards, [], [], np.array([-60.0, -30.0, 0.0]))
    assert (counts.candidates, counts.dropped) == (3, 2)
    assert counts.first == {"leakage": 1, "loudness": 1}
    assert counts.every == {"leakage": 1, "loudness": 2}
    assert counts.loudness.tolist() == [1, 2]
    first, second, third = rows(tmp_path / "clips.csv")
    assert first == {"clip": "a@0.00", "kept": "True", "dropped_by": "", "loudness_lufs": "-20.0", "leakage": "0.25"}
    assert (second["clip"], second["dropped_by"]) == ('b "live", 2@0.00', "leakage loudness")
    assert (third["clip"], third["loudness_lufs"]) == ("c@0.00", "3.0")


def test_unused_songs_are_written_with_the_reason(tmp_path):
    quarantined, left_out = [{"name": "x", "reason": "empty"}], [{"name": "y", "reason": "duplicate of z"}]
    counts = write_logs(tmp_path, [], quarantined, left_out, np.array([0.0, 1.0]))
    assert rows(tmp_path / "quarantine.csv") == [
        {"what": "quarantined", "name": "x", "reason": "empty"},
        {"what": "left out", "name": "y", "reason": "duplicate of z"},
    ]
    assert (counts.candidates, counts.loudness.tolist()) == (0, [0])
    assert rows(tmp_path / "clips.csv") == []


def test_values_outside_the_edges_count_in_the_outermost_bins():
    assert counts_between([-1.0, 0.0, 0.5, 1.0, 9.0], np.array([0.0, 1.0, 2.0])).tolist() == [3, 2]
    assert counts_between([], np.array([0.0, 1.0, 2.0])).tolist() == [0, 0]


def test_the_log_is_a_parquet_table_where_pyarrow_is_installed(prepared):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(prepared / "clips.parquet").to_pylist()
    with (prepared / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in table] == [row["clip"] for row in rows]
    assert [row["kept"] for row in table] == [row["kept"] == "True" for row in rows]
    assert [row["leakage"] for row in table] == pytest.approx([float(row["leakage"]) for row in rows])
