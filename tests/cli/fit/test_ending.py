"""The last lines of a fit: where the run is, its score, and what to type next."""

from __future__ import annotations

from pathlib import Path

import pytest
from fits import write_config
from tiny_shards import write_tiny_shards

from hafm_lightning import cli
from hafm_lightning.cli.fit.ending import ending, next_command
from hafm_lightning.cli.parser import PROGRAM


def saved(run: Path, *names: str) -> Path:
    (run / "checkpoints").mkdir(parents=True)
    for name in names:
        (run / "checkpoints" / name).write_bytes(b"weights")
    return run


def test_the_missing_stage_comes_next_then_generation(tmp_path: Path) -> None:
    run = saved(tmp_path / "logs" / "my-semantic" / "run-003", "best.ckpt")
    config = tmp_path / "semantic.yaml"
    assert next_command(run, config, "semantic") == f"{PROGRAM} curves {run}", "no configuration of another stage"
    (tmp_path / "coarse.yaml").touch()
    assert next_command(run, config, "semantic") == f"{PROGRAM} fit --config {tmp_path / 'coarse.yaml'}"
    for role in ("coarse", "fine"):
        saved(tmp_path / "logs" / f"my-{role}" / "run-000", "step-00000010.ckpt")
    logs = tmp_path / "logs"
    assert next_command(run, config, "semantic") == (
        f"{PROGRAM} generate --vocal VOCAL.wav --out out --semantic {logs / 'my-semantic'} "
        f"--coarse {logs / 'my-coarse'} --fine {logs / 'my-fine'}"
    )
    assert next_command(run, config, None) == f"{PROGRAM} curves {run}"


def test_without_a_validation_the_last_checkpoint_is_named(tmp_path: Path) -> None:
    run = saved(tmp_path / "logs" / "run-000", "step-00000010.ckpt", "step-00000020.ckpt")
    lines = ending(run, None, None, "val/loss", None)
    assert lines[0] == f"run folder:      {run}"
    assert lines[1].startswith(f"last checkpoint: {run / 'checkpoints' / 'step-00000020.ckpt'}")


def test_a_fit_ends_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fit ended without a word about where its checkpoint was."""
    write_tiny_shards(tmp_path / "shards")
    config = write_config(tmp_path / "try", trainer__max_steps=3)
    assert cli.main(["fit", "--config", str(config)]) == cli.DONE
    run = tmp_path / "try" / "logs" / "run-000"
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    assert first == f"run folder:      {run}"
    assert second.startswith(f"best checkpoint: {run / 'checkpoints' / 'best.ckpt'} (val/loss ")
    assert third == f"next:            {PROGRAM} curves {run}"
