"""`compare`: the table says what the files say, in text, HTML and pictures."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from tiny_stages import tiny_stage

from hafm_lightning import cli
from hafm_lightning.callbacks import CsvLog
from hafm_lightning.cli.runs.compare import score_rows
from hafm_lightning.cli.runs.drawing import overlay
from hafm_lightning.cli.runs.records import differing_settings, names_of, parameters_of, read_records
from hafm_lightning.errors import RequestError

LOSSES = ([5.0, 4.0, 4.5], [4.4, 4.3, 4.2])
ACCURACIES = ([0.1, 0.2, 0.3], [0.15, 0.25, 0.35])


def write_run(folder: Path, losses: Sequence[float], accuracies: Sequence[float], *, music: bool) -> Path:
    """A run of 30 steps, validated every 10, whose music is scored after each validation."""
    log = CsvLog(str(folder))
    for step in range(30):
        log.log_metrics({"train/loss": 6 - step / 10, "train/accuracy": step / 100}, step)
        if step % 10 == 9:
            number = step // 10
            log.log_metrics({"val/loss": losses[number], "val/accuracy": accuracies[number]}, step)
            if music:
                log.log_metrics(
                    {"music/fad_logmel": 9.0 - number, "music/clips": 4.0, "music/fad_vggish_paper": 2}, step
                )
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = []
    for number, pattern in enumerate(("delay", "parallel")):
        root = tmp_path / f"coarse-{pattern}"
        run = write_run(root / "run-000", LOSSES[number], ACCURACIES[number], music=number == 0)
        settings = {
            "model": {
                "class_path": "hafm_lightning.stages.CoarseStage",
                "init_args": {"pattern": pattern, "width": 96},
            },
            "trainer": {"default_root_dir": str(root), "max_steps": 30},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        found.append(root)
    return found


def test_scores_are_those_at_the_best_validation_loss(runs: list[Path]) -> None:
    first, second = read_records(runs)
    assert (first.best_step, second.best_step) == (20, 30)
    assert first.score("val/accuracy") == 0.2, "not the later, higher one of other weights"
    assert first.score("music/fad_logmel") == 8.0
    assert second.score("music/fad_logmel") is None
    rows = {name: cells for name, cells, _ in score_rows([first, second])}
    assert rows["val/loss"] == ["4*", "4.2"]
    assert rows["val/accuracy"] == ["0.2", "0.35*"]
    assert rows["music/fad_logmel"] == ["8", "–"]
    assert rows["parameters"] == ["–", "–"]
    assert not {"music/clips", "music/fad_vggish_paper", "test/loss"} & set(rows)


def test_only_settings_that_differ_are_named(runs: list[Path]) -> None:
    assert differing_settings(read_records(runs)) == {"model.pattern": ["delay", "parallel"]}
    (runs[1] / "run-000" / "config.yaml").unlink()
    assert differing_settings(read_records(runs)) == {}


def test_parameters_are_the_networks(tmp_path: Path) -> None:
    stage = tiny_stage()
    checkpoint = {"state_dict": stage.state_dict(), "optimizer_states": [torch.zeros(999)]}
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints" / "best.ckpt")
    assert parameters_of(tmp_path) == sum(parameter.numel() for parameter in stage.parameters())
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    assert parameters_of(tmp_path) is None


def test_the_command_writes_text_page_and_pictures(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["compare", *map(str, runs), "--out", str(out)]) == cli.DONE
    said = capsys.readouterr().out
    text = (out / "compare.txt").read_text()
    assert said.startswith(text)
    lines = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines() if line.strip()}
    assert lines["val/loss"] == ["4*", "4.2"]
    assert lines["model.pattern"] == ["delay", "parallel"]
    page = (out / "compare.html").read_text()
    assert all(word in page for word in ("coarse-delay/run-000", "model.pattern", "curves.svg", "music/fad_logmel"))
    width, height = struct.unpack(">II", (out / "curves.png").read_bytes()[16:24])
    assert width > 1000 < height
    before = (out / "curves.svg").read_bytes()
    assert cli.main(["compare", *map(str, runs), "--out", str(out)]) == cli.DONE
    assert (out / "curves.svg").read_bytes() == before


def test_every_run_is_in_the_picture_with_its_values(runs: list[Path]) -> None:
    loss, accuracy = overlay(read_records(runs)).axes
    drawn = [line.get_ydata().tolist() for line in loss.get_lines() if len(line.get_ydata()) == 3]
    assert drawn == [list(losses) for losses in LOSSES]
    drawn = [line.get_ydata().tolist() for line in accuracy.get_lines() if len(line.get_ydata()) == 3]
    assert drawn == [pytest.approx([100 * value for value in values]) for values in ACCURACIES]
    assert len({line.get_color() for line in loss.get_lines()}) == 2


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "coarse" / "run-000", tmp_path / "b" / "coarse" / "run-000"]
    assert names_of(folders) == ["a/coarse/run-000", "b/coarse/run-000"]
    assert names_of(folders[:1]) == ["coarse/run-000"]


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no metrics\.csv here"):
        read_records([tmp_path / "nothing"])
    with pytest.raises(RequestError, match="named twice"):
        read_records([runs[0], runs[0] / "run-000"])
    (runs[0] / "run-000" / "config.yaml").write_text("a: [")
    with pytest.raises(RequestError, match=r"config\.yaml: cannot be read"):
        read_records(runs)
