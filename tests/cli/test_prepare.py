"""The command ``prepare``: exit codes, and what it prints."""

from tiny_preparation import tiny_values, yaml_file

from hafm_lightning.cli import main


def test_the_command_prepares_and_verifies(musdb, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HAFM_QUIET", "1")
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
