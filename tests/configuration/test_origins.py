"""Configuration files: their order, anchors and merges, keys that are set twice, and the file and line at fault."""

from pathlib import Path

import pytest
from key_cases import CONFIG, refusal

from hafm_lightning.cli.fit.training import read_config


def test_layered_files_are_followed_in_order(config, capsys):
    """A class named in one file decides which keys the next one may set; the file at fault is the one named."""
    Path("more.yaml").write_text("model:\n  init_args:\n    backbone:\n      layer: 3\n")
    message = refusal(capsys, "fit", "--config", config, "--config", "more.yaml")
    assert "where: more.yaml, line 4\ndid you mean 'layers'?" in message
    Path("more.yaml").write_text("model: {init_args: {backbone: {layers: 3}}}\n")
    assert read_config("fit", ["--config", config, "--config=more.yaml"]).model.init_args.backbone.layers == 3
    Path("other.yaml").write_text("trainer:\n  logger:\n    class_path: lightning.pytorch.loggers.CSVLogger\n")
    Path("keys.yaml").write_text("trainer:\n  logger:\n    init_args:\n      project: x\n      save_dir: y\n")
    message = refusal(capsys, "fit", "--config", config, "--config", "other.yaml", "--config", "keys.yaml")
    assert "unknown key 'trainer.logger.project'\nwhere: keys.yaml, line 4" in message


def test_a_file_in_place_of_a_section_is_checked_too(config, capsys):
    Path("model.yaml").write_text(
        "class_path: hafm_lightning.stages.FineStage\ninit_args:\n  backbone: {layers: 3, widht: 8}\n"
    )
    message = refusal(capsys, "fit", "--config", config, "--model", "model.yaml")
    assert "unknown key 'model.backbone.widht'\nwhere: model.yaml, line 3\ndid you mean 'width'?" in message


def test_anchors_merges_and_the_environment_are_followed(config, capsys, monkeypatch):
    monkeypatch.setenv("CLIPS", "3")
    text = CONFIG.replace("clips: 2", "clips: ${oc.env:CLIPS}")
    text = text.replace("learning_rate: 1e-4", "learning_rate: &rate 1e-4\n      weight_decay: *rate")
    Path("c.yaml").write_text(text)
    read = read_config("fit", ["--config", config])
    assert read.trainer.callbacks[1].init_args.clips == 3
    assert read.model.init_args.optimizer.weight_decay == 1e-4
    small = "{layers: 1, <<: &small {widht: 16, heads: 2}, feedforward: 24}"
    Path("c.yaml").write_text(CONFIG.replace("{layers: 1, width: 16, heads: 2, feedforward: 24}", small))
    assert "unknown key 'model.backbone.widht'\nwhere: c.yaml, line 5" in refusal(capsys, "fit", "--config", config)


@pytest.mark.parametrize(
    ("old", "new", "key", "lines"),
    [
        ("layers: 1,", "layers: 1, layers: 4,", "model.init_args.backbone.layers", "5 and 5"),
        ("    pattern: flattened\n", "    pattern: delay\n    pattern: delay\n", "model.init_args.pattern", "4 and 5"),
        ("checkpoints:\n", "data: {}\ncheckpoints:\n", "data", "8 and 31"),
        (
            "        clips: 2\n",
            "        clips: 2\n        clips: 2\n",
            "trainer.callbacks.1.init_args.clips",
            "26 and 27",
        ),
    ],
)
def test_a_key_that_is_set_twice_is_refused_with_both_lines(config, capsys, old, new, key, lines):
    Path("c.yaml").write_text(CONFIG.replace(old, new))
    expected = f"error: key {key!r} is set twice\nwhere: c.yaml, lines {lines}\nkeep one of the two\n"
    assert refusal(capsys, "fit", "--config", config) == expected


def test_a_key_that_an_option_sets_twice_is_refused(config, capsys):
    message = refusal(capsys, "fit", "--config", config, "--model.backbone", "{layers: 3, layers: 4}")
    assert "key 'layers' is set twice\nwhere: command line: --model.backbone\n" in message


def test_a_file_that_nests_without_end_is_refused(config, capsys):
    Path("c.yaml").write_text("model: " + "[" * 5000 + "]" * 5000)
    assert "nests too deeply" in refusal(capsys, "fit", "--config", config)
