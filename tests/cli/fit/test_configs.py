"""``configs``: the shipped configurations, listed and copied to where there is no repository."""

from pathlib import Path

import pytest
from shipped import EXPERIMENTS

from hafm_lightning.cli import main
from hafm_lightning.cli.demo.command import quickstart_folder
from hafm_lightning.cli.fit.configs import purpose, shipped_configurations, shipped_folder
from hafm_lightning.cli.fit.training import read_config

SHIPPED = sorted(path.relative_to(EXPERIMENTS) for path in EXPERIMENTS.rglob("*.yaml"))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_list_names_each_file_and_what_it_is_for(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in SHIPPED:
        (line,) = [line for line in lines if line.split(" ", 1)[0] == f"experiments/{name.as_posix()}"]
        assert len(line.split(" ", 1)[1].split()) >= 3, "it says what the file is for"
    assert "configs --copy" in lines[-1]


def test_a_copy_is_complete_and_its_commands_read_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "--copy", "."]) == 0
    assert f"{len(SHIPPED)} configurations" in capsys.readouterr().out
    assert files_below(tmp_path / "experiments") == files_below(EXPERIMENTS)
    config = read_config("fit", ["--config", "experiments/quickstart/coarse.yaml"])
    assert config.model.class_path.endswith("CoarseStage")
    assert quickstart_folder() == Path("experiments/quickstart"), "a copy that may have been changed comes first"


def test_the_demo_needs_no_copy(tmp_path, monkeypatch):
    """It was: experiments/quickstart/prepare.yaml does not exist, run the demo in the repository's folder."""
    monkeypatch.chdir(tmp_path)
    assert quickstart_folder() == shipped_folder() / "quickstart"
    assert (quickstart_folder() / "demo.yaml").is_file()


def test_a_second_copy_changes_nothing_and_spares_what_was_changed(tmp_path, capsys):
    assert main(["configs", "--copy", str(tmp_path)]) == 0
    mine = tmp_path / "experiments" / "quickstart" / "coarse.yaml"
    mine.write_text("seed_everything: 7\n")
    (tmp_path / "experiments" / "live" / "fine.yaml").unlink()
    before = files_below(tmp_path)
    assert main(["configs", "--copy", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "1 configurations with other content: quickstart/coarse.yaml" in message
    assert "--overwrite" in message
    assert files_below(tmp_path) == before, "nothing is copied beside a conflict"
    assert main(["configs", "--copy", str(tmp_path), "--overwrite"]) == 0
    assert files_below(tmp_path / "experiments") == files_below(EXPERIMENTS)
    assert main(["configs", "--copy", str(tmp_path)]) == 0


def test_wrong_requests_are_refused_and_write_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["configs", "--copy", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["configs", "--overwrite"]) == 2
    assert "--copy DIR" in capsys.readouterr().err
    assert main(["configs", "--copy", str(shipped_folder().parent)]) == 2
    assert "come from" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_missing_configuration_names_the_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "experiments/coarse.yaml"]) == 2
    assert "configs --copy ." in capsys.readouterr().err


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_the_first_line_of_a_configuration_is_a_sentence(name):
    text = purpose(shipped_folder() / name)
    assert text[0].isupper()
    assert 20 < len(text) < 130


def test_the_link_of_the_checkout_leads_to_the_folder(repository):
    assert (repository / "src" / "hafm_lightning" / "experiments").resolve() == repository / "experiments"
    assert shipped_configurations()[0].parent == Path()
