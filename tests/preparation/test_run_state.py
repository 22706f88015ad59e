"""What a root remembers: finished, damaged and foreign shards, other settings and songs."""

import subprocess
from dataclasses import replace

import pytest
from tiny_corpora import write_musdb
from tiny_preparation import shard_bytes, tiny_config

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.preparation.report.report import PreparationReport
from hafm_lightning.preparation.verification import verify_root


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_a_finished_root_is_not_made_again(prepared, musdb):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.safetensors")}
    report = prepare(tiny_config(prepared, musdb))
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.safetensors")} == before
    assert report == PreparationReport.load(prepared)


def test_a_damaged_or_missing_shard_is_made_again(prepared, musdb, tmp_path):
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", prepared, root], check=True)
    expected = shard_bytes(root)
    content = bytearray((root / "train" / "shard-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (root / "train" / "shard-00000.safetensors").write_bytes(content)
    (root / "test" / "shard-00000.safetensors").unlink()
    assert len(verify_root(root).problems) == 2
    prepare(tiny_config(root, musdb))
    assert shard_bytes(root) == expected


def test_a_root_of_other_settings_or_songs_is_refused(prepared, musdb, tmp_path):
    config = tiny_config(prepared, musdb)
    with pytest.raises(RequestError, match=r"made with clips\.hop_s = 2\.0, now it is 1\.0"):
        prepare(replace(config, clips=replace(config.clips, hop_s=1.0)))
    with pytest.raises(RequestError, match=r"noise_sigma = 0\.01, now it is 0\.0"):
        prepare(replace(config, noise_sigma=0.0))
    write_musdb(tmp_path / "more", train=2, test=1, seconds=3.0)
    root = tmp_path / "root"
    corpora = [{"kind": "MusdbHQ", "path": str(tmp_path / "more"), "allow_partial": True}]
    prepare(tiny_config(root, corpora))
    (tmp_path / "more" / "train" / "Artist 1 - Song train 1").rename(tmp_path / "more" / "train" / "Another - Song")
    with pytest.raises(RequestError, match="2 songs were added, removed or changed"):
        prepare(tiny_config(root, corpora))


def test_settings_may_change_until_the_first_shard(prepared, musdb, tmp_path):
    """No clip passes the filter for training; with other thresholds the same root goes on."""
    root = tmp_path / "root"
    strict = {"vocal_activity_min": 1.1}
    with pytest.raises(RequestError, match="no clip of the training songs passes the filter"):
        prepare(tiny_config(root, musdb, filters=strict, tokenizers={"training_clips": 3}, split={"seed": 7}))
    assert (root / "work" / "plan.json").is_file()
    prepare(tiny_config(root, musdb))
    assert shard_bytes(root) == shard_bytes(prepared)


def test_shards_of_unknown_origin_are_not_overwritten(musdb, tmp_path):
    (tmp_path / "root" / "train").mkdir(parents=True)
    (tmp_path / "root" / "train" / "shard-00000.safetensors").write_bytes(b"precious")
    with pytest.raises(RequestError, match="holds shards, but"):
        prepare(tiny_config(tmp_path / "root", musdb))
    assert (tmp_path / "root" / "train" / "shard-00000.safetensors").read_bytes() == b"precious"
