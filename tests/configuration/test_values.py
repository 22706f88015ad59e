"""Values of another type are refused by key and place; numbers, references and printed values are read alike."""

from pathlib import Path

import pytest
import yaml
from key_cases import CONFIG, MUSIC, PREPARATION, SHARDS, refusal

from hafm_lightning.cli import main
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.configuration.values import value_as
from hafm_lightning.preparation.configuration import read_config as read_preparation

VALUES = [  # options, the first line, what the rest contains
    (["--model.backbone.layers", "many"], "'model.backbone.layers' must be int, got 'many'", ""),
    (["--model.backbone", "{layers: 1.5}"], "'model.backbone.layers' must be int, got 1.5", ""),
    (["--model.conditions", "[3]"], "'model.conditions.0' must be str, got 3", ""),
    (["--model.conditions", "3"], "'model.conditions' must be a list of str or null, got 3", ""),
    (["--model.backbone", "3"], "'model.backbone' must be settings (key: value), got 3", ""),
    (["--trainer.fast_dev_run", "perhaps"], "'trainer.fast_dev_run' must be int or bool, got 'perhaps'", ""),
    (["--model", "Nonsense"], "class_path 'Nonsense': no class has this name", "known here: CoarseStage, FineStage"),
    (["--model", "CoarsStage"], "class_path 'CoarsStage': no class has this name", "did you mean 'CoarseStage'?"),
    (["--model", MUSIC], f"class_path {MUSIC!r}: this class is no LightningModule", ""),
    (["--trainer.callbacks", f"[{SHARDS}]"], f"class_path {SHARDS!r}: this class is no Callback", ""),
    (["--trainer.max_steps"], "--trainer.max_steps needs a value", "write --trainer.max_steps VALUE"),
    (["--trainer.max_steps", "${nope}"], "trainer.max_steps: Interpolation key 'nope' not found", "full path of a key"),
    (["--trainer.max_steps", "${model.class_path}"], "'trainer.max_steps': ", "hafm_lightning.stages.CoarseStage"),
]


@pytest.mark.parametrize(("options", "first", "more"), VALUES, ids=[" ".join(case[0]) for case in VALUES])
def test_a_wrong_value_is_refused_by_its_key_and_place(config, capsys, options, first, more):
    told = refusal(capsys, "fit", "--config", config, *options)
    assert told.startswith(f"error: {first}")
    assert "where: command line" in told
    assert more in told


def test_an_option_reaches_the_references_to_its_key(config):
    Path("c.yaml").write_text(CONFIG.replace("max_steps: 2", "max_steps: ${data.init_args.batch_size}"))
    assert read_config("fit", ["--config", config, "--data.batch_size", "7"]).trainer.max_steps == 7
    referring = ["--trainer.max_epochs", "${trainer.max_steps}"]
    assert read_config("fit", ["--config", config, *referring]).trainer.max_epochs == 4


def test_the_printed_configuration_is_read_as_it_was_printed(config, capsys):
    given = ["--config", config, "--model.backbone.layers", "3"]
    assert main(["fit", *given, "--print_config"]) == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    first, again = (read_config("fit", arguments).as_dict() for arguments in (given, ["--config", "printed.yaml"]))
    assert first.pop("config") != again.pop("config")
    assert first == again


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3", ".001", "10e-4", "1_0e-4"])
def test_a_number_is_written_in_one_way_everywhere(config, text):
    """In files and on the command line of fit and of prepare."""
    for options in ([], ["--model.optimizer.learning_rate", text]):
        Path("c.yaml").write_text(CONFIG if options else CONFIG.replace("1e-4", text))
        assert read_config("fit", ["--config", config, *options]).model.init_args.optimizer.learning_rate == 0.001
    for overrides in ([], [f"noise_sigma={text}"]):
        Path("p.yaml").write_text(PREPARATION if overrides else PREPARATION + f"noise_sigma: {text}\n")
        assert read_preparation("p.yaml", overrides).noise_sigma == 0.001
    assert yaml.safe_load("1e-3") == "1e-3"  # why PyYAML alone does not do


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1e-3", float, 0.001),
        ("1e3", float, 1000.0),
        ("1e3", int, 1000),
        ("2.5E2", int | None, 250),
        ("1e3", str, "1e3"),
        (1000.0, int, 1000),
    ],
)
def test_numbers_with_an_exponent(value, hint, expected):
    found = value_as(value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("value", "hint"), [("1e-3", int), (1.5, int), ("1e0", bool), ("one", int), ("1e999", int)])
def test_what_is_no_number_of_a_kind(value, hint):
    with pytest.raises(ValueError, match=hint.__name__):
        value_as(value, hint)
