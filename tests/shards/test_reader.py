"""Shards: bytes that depend on clips alone, and readers that refuse what they should not read."""

import json
import pickle
import struct
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hafm_lightning import files
from hafm_lightning.errors import RequestError
from hafm_lightning.shards import (
    STORED_STREAMS,
    Manifest,
    ShardReader,
    clip_id,
    map_shard,
    open_shards,
    row_shape,
    song_of,
    stream_description,
    write_shard,
)


def random_rows(clips: int, seed: int, names=("vocal_semantic", "instrumental_semantic", "instrumental_codes")):
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(
            0, STORED_STREAMS[name].vocabulary, (clips, *row_shape(STORED_STREAMS[name], 10.0)), dtype=np.uint16
        )
        for name in names
    }


def write_split(folder: Path, counts=(3, 2), names=("vocal_semantic", "instrumental_semantic", "instrumental_codes")):
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


def test_a_clip_reads_back_as_it_was_written(tmp_path):
    names = ("vocal_semantic", "instrumental_semantic", "instrumental_codes", "vocal_acoustic", "style")
    rows = write_split(tmp_path / "train", names=names)
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


@given(st.text(min_size=1, max_size=20), st.integers(0, 100_000))
def test_clip_ids_give_back_their_song(song, frame):
    assert song_of(clip_id(song, frame / 25)) == song


def read_sum(reader: ShardReader) -> int:
    return sum(int(reader[i]["instrumental_codes"].sum()) for i in range(len(reader)))


def test_a_reader_crosses_process_borders_without_its_data(tmp_path):
    write_split(tmp_path / "train")
    reader = ShardReader(tmp_path / "train")
    expected = read_sum(reader)  # maps are open now
    assert len(pickle.dumps(reader)) < 5_000
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(read_sum, reader).result() == expected


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


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "empty", "text", "stray"])
def test_verify_names_the_damaged_file(tmp_path, damage):
    folder = tmp_path / "train"
    write_split(folder)
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
    write_split(folder)
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


def test_manifests_that_cannot_be_used_say_so(tmp_path):
    folder = tmp_path / "train"
    write_split(folder)
    manifest = Manifest.load(folder)
    assert manifest.songs() == ["song 0", "song 1"]
    replace(manifest, format_version=99).save(folder)
    with pytest.raises(RequestError, match="format 99"):
        ShardReader(folder)
    broken = {"vocal_semantic": {"rate_hz": 50, "codebooks": 1, "vocabulary": 7}}
    replace(manifest, streams=manifest.streams | broken).save(folder)
    with pytest.raises(RequestError, match="vocal_semantic"):
        ShardReader(folder)
    replace(manifest, streams={"style": manifest.streams["vocal_semantic"]}).save(folder)
    with pytest.raises(RequestError):
        ShardReader(folder)
    outside = replace(manifest.shards[0], file="../train/shard-00000.safetensors")
    replace(manifest, shards=[outside]).save(folder)
    with pytest.raises(RequestError, match="inconsistent"):
        ShardReader(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="not a shard manifest"):
        ShardReader(folder)


def test_missing_folders_and_splits_name_the_mend(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        open_shards(tmp_path / "nowhere", "train")
    write_split(tmp_path / "train")
    with pytest.raises(RequestError, match=r"no split 'validation'.*found: train"):
        open_shards(tmp_path, "validation")
