"""What ``prepare --verify`` finds, and the command itself."""

import json
import subprocess

import pytest
from tiny_preparation import tiny_values, yaml_file

from hafm_lightning.cli import main
from hafm_lightning.preparation.verification import verify_root


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")


def test_verify_finds_splits_that_share_songs_and_foreign_tokenizers(prepared, tmp_path):
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", prepared, root], check=True)
    subprocess.run(["cp", "-r", root / "test", root / "spare"], check=True)
    for path in (root / "validation").iterdir():
        path.unlink()
    for path in (root / "spare").iterdir():
        path.rename(root / "validation" / path.name)
    description = json.loads((root / "tokenizers" / "semantic" / "tokenizer.json").read_text())
    description["identity"]["sha256"] = "0" * 64
    (root / "tokenizers" / "semantic" / "tokenizer.json").write_text(json.dumps(description))
    text = "\n".join(verify_root(root).problems)
    assert "its manifest belongs to the split 'test'" in text
    assert "1 songs are in validation and in test" in text
    assert "different semantic tokenizer" in text


def test_the_command_prepares_and_verifies(musdb, tmp_path, capsys):
    config = yaml_file(tmp_path / "c.yaml", tiny_values(tmp_path / "unused", musdb))
    root = tmp_path / "root"
    assert main(["prepare", "--config", str(config), f"root={root}", "split.validation_share=0"]) == 0
    assert "train: 12 clips of 4 songs" in capsys.readouterr().out
    assert main(["prepare", "--verify", str(root)]) == 0
    assert "complete and undamaged (train 12 clips, test 3 clips)" in capsys.readouterr().out
    shard = root / "test" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    assert main(["prepare", "--verify", str(root)]) == 1
    assert "shard-00000.safetensors" in capsys.readouterr().out
    assert main(["prepare", "--verify", str(tmp_path / "nothing")]) == 2
    assert main(["prepare"]) == 2
    assert main(["prepare", "--config", str(tmp_path / "none.yaml")]) == 2
    assert main(["prepare", "--config", str(config), "hop"]) == 2
