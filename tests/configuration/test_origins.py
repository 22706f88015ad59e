"""Several files: the one at fault is named, in the order in which the parser applies them."""

from pathlib import Path

from key_cases import refusal

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
