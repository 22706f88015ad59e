"""Writing shards: bytes that depend on clips alone, and rows that are refused."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_shards import random_rows

from hafm_lightning import files
from hafm_lightning.shards import (
    clip_id,
    write_shard,
)


def test_the_file_is_plain_safetensors_and_its_bytes_depend_on_the_clips_alone(tmp_path):
    rows = random_rows(4, seed=7)
    ids = [clip_id("a", 10.0 * i) for i in range(4)]
    one = write_shard(tmp_path / "one.safetensors", rows, ids, 10.0)
    two = write_shard(tmp_path / "two.safetensors", dict(reversed(list(rows.items()))), ids, 10.0)
    assert one.sha256 == two.sha256
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    foreign = load_file(tmp_path / "one.safetensors")  # the reference reader
    for name, values in rows.items():
        np.testing.assert_array_equal(foreign[name], values)


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_shard(tmp_path / "shard-00000.safetensors", random_rows(1, 0), ["a@0.00"], 10.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocal_semantic": np.full((2, 500), 500, np.uint16)}, "id 500, allowed 0..499"),
        ({"instrumental_codes": np.zeros((2, 8, 749), np.uint16)}, "expected uint16"),
        ({"instrumental_codes": np.zeros((2, 8, 750), np.int64)}, "is int64"),
        ({"loudness": np.zeros(2, np.uint16)}, "unknown stream 'loudness'"),
    ],
)
def test_rows_that_do_not_fit_their_stream_are_not_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "x.safetensors", random_rows(2, 0) | change, ["a@0.00", "b@0.00"], 10.0)
    assert not (tmp_path / "x.safetensors").exists()


def test_doubled_clip_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="distinct ids"):
        write_shard(tmp_path / "x.safetensors", random_rows(2, 0), ["a@0.00", "a@0.00"], 10.0)
