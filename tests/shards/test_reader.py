"""Reading shards: clips as they were written, across processes, and files that are refused."""

import json
import pickle
import struct
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from tiny_shards import write_full_split

from hafm_lightning.errors import RequestError
from hafm_lightning.shards import (
    ShardReader,
    map_shard,
    open_shards,
)


def test_a_clip_reads_back_as_it_was_written(tmp_path):
    names = ("vocal_semantic", "instrumental_semantic", "instrumental_codes", "vocal_acoustic", "style")
    rows = write_full_split(tmp_path / "train", names=names)
    reader = open_shards(tmp_path, "train")
    assert len(reader) == 5
    assert reader.clip_ids[3] == "song 1@0.00"
    for index, (shard, row) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        clip = reader[index]
        assert {name: ids.shape for name, ids in clip.items()} == {
            "vocal_semantic": (1, 500),
            "instrumental_semantic": (1, 500),
            "instrumental_codes": (8, 750),
            "vocal_acoustic": (8, 750),
            "style": (1, 1),
        }
        for name, ids in clip.items():
            np.testing.assert_array_equal(ids.ravel(), rows[shard][name][row].ravel())
    assert reader.verify() == []
    np.testing.assert_array_equal(reader[-1]["style"], reader[4]["style"])
    with pytest.raises(IndexError):
        reader[5]


def read_sum(reader: ShardReader) -> int:
    return sum(int(reader[i]["instrumental_codes"].sum()) for i in range(len(reader)))


def test_a_reader_crosses_process_borders_without_its_data(tmp_path):
    write_full_split(tmp_path / "train")
    reader = ShardReader(tmp_path / "train")
    expected = read_sum(reader)  # maps are open now
    assert len(pickle.dumps(reader)) < 5_000
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(read_sum, reader).result() == expected


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "empty", "text", "stray"])
def test_verify_names_the_damaged_file(tmp_path, damage):
    folder = tmp_path / "train"
    write_full_split(folder)
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"hello, this is not a shard")
    else:
        path = folder / "shard-00002.safetensors"
        path.write_bytes(content)
    problems = ShardReader(folder).verify()
    assert len(problems) == 1
    assert path.name in problems[0]


@pytest.mark.parametrize("damage", ["missing", "short", "text"])
def test_a_damaged_shard_is_refused_when_read(tmp_path, damage):
    folder = tmp_path / "train"
    write_full_split(folder)
    path = folder / "shard-00000.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-2] if damage == "short" else b"text" * 50)
    with pytest.raises(RequestError, match=r"shard-00000\.safetensors"):
        ShardReader(folder)[0]


def test_a_hostile_header_cannot_reach_outside_the_file(tmp_path):
    header = json.dumps({"style": {"dtype": "U16", "shape": [10**9], "data_offsets": [0, 2 * 10**9]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(RequestError, match="damaged"):
        map_shard(path)
