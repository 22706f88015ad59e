"""The short help of `fit`: every key that it names is one that the parser takes."""

from __future__ import annotations

import pytest
from shipped import EXPERIMENTS

from hafm_lightning import cli
from hafm_lightning.cli.fit import training
from hafm_lightning.cli.fit.command import KEYS, main, short_help
from hafm_lightning.cli.fit.training import read_config

VALUES = {
    "N": "4",
    "P": "0.2",
    "R": "1e-3",
    "S": "3.0",
    "X": "1.0",
    "DIR": "somewhere",
    "FILE": "some.ckpt",
    "METRIC": "val/accuracy",
    "DD:HH:MM:SS": "00:01:00:00",
    "true": "true",
}
NAMES = {"pattern": "delay", "conditioning": "aligned", "precision": "bf16-mixed"}


def test_the_parser_takes_every_key_of_the_short_help() -> None:
    options = []
    for keys in KEYS.values():
        for key in keys:
            option, _, value = key.partition(" ")
            if option != "--config":
                options.append(f"{option}={NAMES[option.rpartition('.')[2]] if value == 'NAME' else VALUES[value]}")
    assert len(options) > 15
    config = read_config("fit", ["--config", str(EXPERIMENTS / "quickstart" / "coarse.yaml"), *options])
    assert config.model.init_args.backbone.layers == 4
    assert config.trainer.max_time == "00:01:00:00"


def test_help_is_short_and_the_whole_help_goes_to_lightning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["fit", "--help"]) == cli.DONE
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 50
    assert max(map(len, said.splitlines())) <= 130
    assert "--help-all" in said
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(training, "run", lambda command, arguments: asked.append((command, list(arguments))) or 0)
    for words in (["--help-all"], ["--help=all"], ["--config", "x", "--help_all"], ["--config", "x"]):
        main("validate", words)
    assert asked == [("validate", ["--help"])] * 3 + [("validate", ["--config", "x"])]


def test_the_help_of_scoring_names_no_setting_of_training() -> None:
    assert "--model.optimizer" not in short_help("test")
    assert "the best checkpoint of the newest run" in short_help("test")
    assert "the newest checkpoint of the newest run" in short_help("fit")


def test_a_setting_without_dashes_is_an_option() -> None:
    """`fit` took `--key value` alone, `prepare` and `evaluate` also `key=value`."""
    config = str(EXPERIMENTS / "quickstart" / "coarse.yaml")
    for words in (["model.pattern=parallel"], ["--model.pattern=parallel"], ["--model.pattern", "parallel"]):
        assert read_config("fit", ["--config", config, *words]).model.init_args.pattern == "parallel"
