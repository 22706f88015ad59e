"""`sweep`: the YAML that W&B reads, with keys and values that `fit` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from shipped import EXPERIMENTS

from hafm_lightning import cli
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.cli.runs.sweep import LOGGER, parameter
from hafm_lightning.configuration.origins import Option
from hafm_lightning.errors import RequestError

CONFIG = str(EXPERIMENTS / "quickstart" / "coarse.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("delay,parallel", {"values": ["delay", "parallel"]}),
        ("[1e-3, 2e-3]", {"values": [1e-3, 2e-3]}),
        ("true,false", {"values": [True, False]}),
        ("500", {"value": 500}),
        ("1e-4..1e-2", {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}),
        ("0.0..0.2", {"distribution": "uniform", "min": 0.0, "max": 0.2}),
        ("0.5..1", {"distribution": "uniform", "min": 0.5, "max": 1.0}),
        ("2..6", {"distribution": "int_uniform", "min": 2, "max": 6}),
    ],
)
def test_values_and_ranges(text: str, expected: dict[str, object]) -> None:
    assert parameter(Option("--key", text)) == expected


@pytest.mark.parametrize("text", ["", "a..b", "3..2", "1..1", "nan..2", "1..inf", "[1]", "1,1", "true..2"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--key"):
        parameter(Option("--key", text))


def test_the_sweep_that_an_agent_runs_is_one_that_fit_takes(tmp_path: Path) -> None:
    out = tmp_path / "sweep.yaml"
    words = ["--model.pattern", "delay,parallel", "--model.optimizer.learning_rate=1e-4..1e-2", "trainer.max_steps=20"]
    assert cli.main(["sweep", "--config", CONFIG, "--out", str(out), *words]) == cli.DONE
    sweep = yaml.safe_load(out.read_text())
    assert sweep["method"] == "random"
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert list(sweep["parameters"]) == ["model.pattern", "model.optimizer.learning_rate", "trainer.max_steps"]
    env, interpreter, *command = sweep["command"]
    assert (env, interpreter, command[-1]) == ("${env}", "${interpreter}", "${args}")
    assert command[:3] == ["-m", "hafm_lightning", "fit"]
    # what W&B's agent puts in place of ${args}
    args = ["--model.pattern=parallel", "--model.optimizer.learning_rate=0.00031", "--trainer.max_steps=20"]
    config = read_config("fit", [*command[3:-1], *args])
    assert config.model.init_args.pattern == "parallel"
    assert config.model.init_args.optimizer.learning_rate == 0.00031
    assert "WandbDashboard" in str(config.trainer.logger)


def test_a_configuration_with_a_logger_keeps_it(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    content = yaml.safe_load(Path(CONFIG).read_text())
    content["trainer"]["logger"] = {
        "class_path": "hafm_lightning.callbacks.WandbDashboard",
        "init_args": {"group": "g"},
    }
    config.write_text(yaml.safe_dump(content))
    out = tmp_path / "sweep.yaml"
    assert cli.main(["sweep", "--config", str(config), "--out", str(out), "--model.pattern=delay,parallel"]) == cli.DONE
    sweep = yaml.safe_load(out.read_text())
    assert LOGGER not in sweep["command"]
    assert sweep["method"] == "grid"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.backbone.layer", "2,3"], "did you mean 'layers'?"),
        (["--model.pattern", "delay,paralel"], "paralel"),
        (["--model.pattern", "delay"], "nothing to search"),
        (["--method", "grid", "--model.backbone.layers", "2..3"], "cannot try every value of a range"),
        (["--modl.pattern", "delay,parallel"], "did you mean '--model'?"),
    ],
)
def test_mistakes_are_answered_before_a_file_is_written(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.yaml"
    assert cli.main(["sweep", "--config", CONFIG, "--out", str(out), *words]) == cli.WRONG_REQUEST
    assert said in capsys.readouterr().err
    assert not out.exists()
