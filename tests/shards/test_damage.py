"""Shards and manifests that were damaged, exchanged or made by somebody else never train."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from damaged_json import survivors
from tiny_shards import write_tiny_shards, write_tiny_split

from hafm_lightning import files
from hafm_lightning.data_modules import TokenShards
from hafm_lightning.errors import RequestError
from hafm_lightning.shards import MANIFEST_NAME, Manifest, ShardReader, open_shards, verified
from hafm_lightning.shards.verified import has_sha256, was_verified


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_shards(tmp_path / "data")


def train(root: Path) -> None:
    TokenShards(str(root), batch_size=2).setup("fit")


def flip_bit(root: Path) -> None:
    path = root / "train" / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def zero_data(root: Path) -> None:
    path = root / "train" / "shard-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes(200))


def swap(root: Path) -> None:
    write_tiny_split(root, "train", (4, 4))
    first, second = (root / "train" / f"shard-0000{number}.safetensors" for number in (0, 1))
    first.rename(root / "other")
    second.rename(first)
    (root / "other").rename(second)


def copy_validation(root: Path) -> None:
    write_tiny_split(root, "validation", (5, 3))
    shutil.copy(root / "validation" / "shard-00000.safetensors", root / "train")


def copy_manifest(root: Path) -> None:
    shutil.rmtree(root / "train")
    shutil.copytree(root / "validation", root / "train")


def pipe(root: Path) -> None:
    path = root / "train" / "shard-00001.safetensors"
    path.unlink()
    os.mkfifo(path)


def folder(root: Path) -> None:
    path = root / "train" / "shard-00001.safetensors"
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [flip_bit, zero_data, swap, copy_validation, copy_manifest, pipe, folder], ids=lambda it: it.__name__
)
def test_training_on_changed_shards_is_refused_by_name(root: Path, damage) -> None:
    damage(root)
    with pytest.raises(RequestError, match="train") as refused:
        train(root)
    assert len(str(refused.value).splitlines()) <= 3


def test_the_same_song_in_two_splits_is_named(root: Path) -> None:
    write_tiny_split(root, "validation", (2, 2))
    content = json.loads((root / "validation" / MANIFEST_NAME).read_text())
    content["shards"][0]["clip_ids"][0] = "train 0-0@0.00"
    content["shards"][0]["songs"] = ["train 0-0", "validation 0-1"]
    (root / "validation" / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 songs .* 'train' and in 'validation' .*'train 0-0'"):
        train(root)


def test_a_file_is_hashed_again_only_when_it_changed(root: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "FRESH_NS", 0)
    path = root / "train" / "shard-00000.safetensors"
    sha256 = ShardReader(root / "train").manifest.shards[0].sha256
    assert not was_verified(path, sha256)
    assert has_sha256(path, sha256)
    assert was_verified(path, sha256)
    assert not was_verified(path, "0" * 64)
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    time.sleep(0.02)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an archive does that keeps times
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert not was_verified(path, sha256)
    assert not has_sha256(path, sha256)


def test_a_young_file_and_a_read_only_cache_are_hashed_each_time(root: Path, monkeypatch, tmp_path) -> None:
    path = root / "train" / "shard-00000.safetensors"
    sha256 = ShardReader(root / "train").manifest.shards[0].sha256
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert has_sha256(path, sha256)
    assert not was_verified(path, sha256)  # it may change again within a tick of the clock
    monkeypatch.setattr(verified, "FRESH_NS", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "file"))
    assert has_sha256(path, sha256)


def test_large_splits_are_announced_once(root: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("hafm_lightning.shards.reader.ANNOUNCED_BYTES", 10)
    train(root)
    lines = [line for line in capsys.readouterr().err.splitlines() if "train" in line]
    assert len(lines) == 1
    assert "comparing 2 shards" in lines[0]


OPENS_MANY = """
import resource, sys
from hafm_lightning.data_modules import TokenShards
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
data = TokenShards(sys.argv[1], batch_size=2)
data.setup("fit")
print(sum(1 for batch in data.train_dataloader()))
"""


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path, train=(1,) * 144)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENS_MANY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "72", done.stderr
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_rows_are_read_only(root: Path) -> None:
    clip = open_shards(root, "train")[0]
    with pytest.raises(ValueError, match="read-only"):
        clip["vocal_semantic"][:] = 0
    assert isinstance(clip["vocal_semantic"], np.ndarray)


def manifest_content(tmp_path: Path) -> dict:
    write_tiny_split(tmp_path, "train", (1,), names=("vocal_semantic", "instrumental_semantic", "instrumental_codes"))
    return json.loads((tmp_path / "train" / MANIFEST_NAME).read_text())


def test_damaged_manifests_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    content = manifest_content(tmp_path)
    taken = survivors(content, lambda text: Manifest.parse(text, "WHERE"))
    fields = {name.split()[0].split(".")[0] for name in taken} - {"shards"}
    # what an identity of a tokenizer or the settings of a preparation hold is compared elsewhere
    assert fields <= {"preparation", "resampler", "tokenizers", "duration_s", "styles", "format_version"}, taken
    assert [name for name in taken if name.startswith("shards")] == ["shards list"], "a split may be empty"


@pytest.mark.parametrize("name", ["../../../X/evil", "/etc/passwd", "..", "a" * 63 + "/", "A" * 64, "", "~/x"])
def test_a_remote_manifest_cannot_name_paths(tmp_path: Path, name: str, monkeypatch) -> None:
    import fsspec

    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "deep" / "er" / "cache"))
    content = manifest_content(tmp_path / "made")
    filesystem = fsspec.filesystem("memory")
    for key in ("sha256", "file"):
        entry = {**content["shards"][0], key: name}
        filesystem.pipe("/hostile/train/manifest.json", json.dumps({**content, "shards": [entry]}).encode())
        with pytest.raises(RequestError, match="manifest"):
            open_shards("memory://hostile", "train")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    filesystem.rm("/hostile", recursive=True)
