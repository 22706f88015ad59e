"""The scripts of examples/ run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tiny_shards import write_tiny_shards

from hafm_lightning.cli.runs.records import read_records


def test_optuna_searches_the_quickstart(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="the package optuna is not installed: examples/optuna_sweep.py is not tried")
    shards = write_tiny_shards(tmp_path / "shards")
    specification = importlib.util.spec_from_file_location("optuna_sweep", repository / "examples" / "optuna_sweep.py")
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    monkeypatch.chdir(tmp_path)  # the toy band is not here: no music is measured
    smaller = ["--data.root", str(shards), "--data.crop_s", "0.2", "--data.batch_size", "4", "--data.workers", "0"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    config = str(repository / "experiments" / "quickstart" / "coarse.yaml")
    words = [
        "--config",
        config,
        "--out",
        str(tmp_path / "out"),
        "--trials",
        "1",
        "--steps",
        "2",
        "--",
        *smaller,
        *quiet,
    ]
    study = example.search(words)
    study = example.search(words)
    assert [trial.number for trial in study.trials] == [0, 1], "the second call goes on with the study"
    records = read_records(sorted((tmp_path / "out").glob("trial-*")))
    assert [trial.value for trial in study.trials] == [min(it.series["val/loss"].values) for it in records]
    assert [record.settings["model.backbone.layers"] for record in records] == [
        trial.params["layers"] for trial in study.trials
    ]
