"""Unknown keys are refused at any depth, with their place and the right suggestion; known ones are accepted."""

from pathlib import Path

import pytest
from key_cases import CONFIG, MUSIC, SHARDS, refusal

from hafm_lightning.cli.fit.training import read_config

OPTIONS = [  # options, the key that is told, the option that is told, what was meant
    (["--model.backbone.layer", "6"], "model.backbone.layer", "'layers'"),
    (["--model.backbone.layer=6"], "model.backbone.layer", "'layers'"),
    (["--model.init_args.backbone.layer", "6"], "model.backbone.layer", "'layers'"),
    (["--model.backbone", "{layer: 6}"], "model.backbone.layer", "'layers'"),
    (["--model", "{backbone: {layer: 6}}"], "model.backbone.layer", "'layers'"),
    (["--model", "{init_args: {backbone: {layer: 6}}}"], "model.backbone.layer", "'layers'"),
    (["--model.init_args", "{patern: delay}"], "model.patern", "'pattern'"),
    (["--model.backbone.Layers", "6"], "model.backbone.Layers", "'layers'"),
    (["--model.optimizer.learning-rate", "1"], "model.optimizer.learning-rate", "'learning_rate'"),
    (["--model.optimizer.learning_rat", "1"], "model.optimizer.learning_rat", "'learning_rate'"),
    (["--model.patter", "delay"], "model.patter", "'pattern'"),
    (["--model.layers", "6"], "model.layers", "'backbone.layers'"),
    (["--model.dict_kwargs.patern", "delay"], "model.patern", "'pattern'"),
    (["--model.init_arg.pattern", "delay"], "model.init_arg", "'init_args'"),
    (["--model.class_pat", "x"], "model.class_pat", "'class_path'"),
    (["--model", "SemanticStage", "--model.backbone.widht", "6"], "model.backbone.widht", "'width'"),
    (["--data.batch-size", "4"], "data.batch-size", "'batch_size'"),
    (["--data.init_args.batchsize", "4"], "data.batchsize", "'batch_size'"),
    (["--data", f"{{class_path: {SHARDS}, root: x}}"], "data.root", "'init_args.root'"),
    (["--trainer.max_step", "4"], "trainer.max_step", "'max_steps'"),
    (["--trainer.max-steps", "4"], "trainer.max-steps", "'max_steps'"),
    (["--trainer", "{max_step: 4}"], "trainer.max_step", "'max_steps'"),
    (["--trainer.logger.projec", "x"], "trainer.logger.projec", "'project'"),
    (["--trainer.logger.init_args.projec", "x"], "trainer.logger.projec", "'project'"),
    (["--trainer.callbacks.clps", "4"], "trainer.callbacks.1.clps", "'clips'"),
    (["--trainer.callbacks.every", "4"], "trainer.callbacks.1.every", "'every_n_validations'"),
    (["--trainer.callbacks.sampling.temprature", "1"], "trainer.callbacks.1.sampling.temprature", "'temperature'"),
    ([f"--trainer.callbacks+={MUSIC}", "--trainer.callbacks.clps", "4"], "trainer.callbacks.2.clps", "'clips'"),
    (
        ["--trainer.callbacks+", f"{{class_path: {MUSIC}, init_args: {{embeddings: [{{nam: x}}]}}}}"],
        "trainer.callbacks.2.embeddings.0.nam",
        "'name'",
    ),
    (
        ["--trainer.callbacks", f"[{{class_path: {MUSIC}, init_args: {{clps: 4}}}}]"],
        "trainer.callbacks.0.clps",
        "'clips'",
    ),
    (
        ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.versio", "1"],
        "trainer.logger.versio",
        "'version'",
    ),
    (
        ["--trainer.strategy", "lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.find_unused", "1"],
        "trainer.strategy.find_unused",
        "'find_unused_parameters'",
    ),
    (["--checkpoints.kep", "4"], "checkpoints.kep", "'keep'"),
    (["--checkpoints.every", "4"], "checkpoints.every", "'every_steps' or 'every_minutes'"),
    (["--dashboard.papr", "4"], "dashboard.papr", "'paper'"),
    (["--seed_everythin", "4"], "seed_everythin", "'seed_everything'"),
    (["--ckpt_pat", "x"], "ckpt_pat", "'ckpt_path'"),
    (["--mode.backbone.layers", "4"], "mode", "'model'"),
    (["--max_steps", "4"], "max_steps", "'trainer.max_steps'"),
    (["--confg", "x"], "confg", "'config'"),
]


@pytest.mark.parametrize(("options", "key", "meant"), OPTIONS, ids=[" ".join(case[0]) for case in OPTIONS])
def test_a_misspelt_option_is_refused_with_what_was_meant(config, capsys, options, key, meant):
    option = next(o for o in reversed(options) if o.startswith("--")).partition("=")[0].removesuffix("+")
    expected = f"error: unknown key {key!r}\nwhere: command line: {option}\ndid you mean {meant}?\n"
    assert refusal(capsys, "fit", "--config", config, *options) == expected


CHANGES = [  # what stands in the file, what is written in its place, the key that is told, what was meant
    ("model:", "modle:", "modle", "'model'"),
    ("pattern:", "patern:", "model.patern", "'pattern'"),
    ("layers:", "layer:", "model.backbone.layer", "'layers'"),
    ("heads:", "Heads:", "model.backbone.Heads", "'heads'"),
    ("learning_rate:", "learning-rate:", "model.optimizer.learning-rate", "'learning_rate'"),
    ("batch_size:", "batchsize:", "data.batchsize", "'batch_size'"),
    ("max_steps:", "max_step:", "trainer.max_step", "'max_steps'"),
    ("project:", "projekt:", "trainer.logger.projekt", "'project'"),
    ("monitor:", "monitr:", "trainer.callbacks.0.monitr", "'monitor'"),
    ("clips:", "clps:", "trainer.callbacks.1.clps", "'clips'"),
    ("temperature:", "temprature:", "trainer.callbacks.1.sampling.temprature", "'temperature'"),
    ("name:", "nam:", "trainer.callbacks.1.embeddings.0.nam", "'name'"),
    ("keep:", "kep:", "checkpoints.kep", "'keep'"),
    ("init_args:\n    root", "init_arg:\n    root", "data.init_arg", "'init_args'"),
    ("init_args:\n    root", "root", "data.root", "'init_args.root'"),
]


@pytest.mark.parametrize(("old", "new", "key", "meant"), CHANGES, ids=[case[2] for case in CHANGES])
def test_a_misspelt_key_of_a_file_is_refused_with_its_line(config, capsys, old, new, key, meant):
    assert CONFIG.count(old) == 1
    line = CONFIG[: CONFIG.index(old)].count("\n") + 1
    text = CONFIG.replace(old, new)
    if new == "root":
        text = CONFIG.replace("  init_args:\n    root: shards\n    batch_size: 4\n", "  root: shards\n")
    Path("c.yaml").write_text(text)
    expected = f"error: unknown key {key!r}\nwhere: c.yaml, line {line}\ndid you mean {meant}?\n"
    assert refusal(capsys, "fit", "--config", config) == expected


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "describe"])
def test_every_command_that_reads_the_configuration_refuses(config, capsys, command):
    for given in (["--model.backbone.layer", "6"], ["--trainer.max_step=3"]):
        assert "did you mean" in refusal(capsys, command, "--config", config, *given)
    Path("c.yaml").write_text(CONFIG.replace("layers:", "layer:"))
    assert "where: c.yaml, line 5\ndid you mean 'layers'?" in refusal(capsys, command, "--config", config)


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--model.pattern.x", "'model.pattern' takes a value and has no keys of its own"),
        ("--model.backbone.layers.x", "'model.backbone.layers' takes a value and has no keys of its own"),
        ("--model.conditions.x", "'model.conditions' takes a list of values and has no keys of its own"),
        ("--trainer.limit_val_batches.x", "'trainer.limit_val_batches' takes a value and has no keys of its own"),
        ("--trainer.profiler.x", "no class is named for 'trainer.profiler': do so before this key"),
        ("--trainer.callbacks.0.init_args.clips", "--trainer.callbacks+=CLASS appends to this list"),
        ("--model.backbone.xyz", "known here: checkpoint_layers, dropout, feedforward, heads, layers, width"),
    ],
)
def test_a_key_where_there_can_be_none_is_refused(config, capsys, option, advice):
    message = refusal(capsys, "fit", "--config", config, option, "3")
    assert f"where: command line: {option}\n{advice}" in message


ACCEPTED = [
    (["--model.backbone.layers", "3"], 3),
    (["--model.init_args.backbone.layers=3"], 3),
    (["--model.backbone", "{layers: 3}"], 3),
    (["--model", "{init_args: {backbone: {layers: 3}}}"], 3),
    (["--model", "{backbone: {layers: 3}}"], 3),
    (["--model", "{class_path: hafm_lightning.stages.FineStage, init_args: {backbone: {layers: 3}}}"], 3),
    (["--model", "SemanticStage", "--model.backbone.layers", "3"], 3),
    (["--data", SHARDS, "--data.root", "x", "--data.batch_size", "3"], 1),
    (["--data.init_args.batch_size", "3"], 1),
    (["--trainer", "{max_steps: 3}"], 1),
    (["--trainer.max_time", "{hours: 3}"], 1),
    (["--trainer.callbacks.sampling.temperature", "0.5"], 1),
    ([f"--trainer.callbacks+={MUSIC}", "--trainer.callbacks.root", "x", "--trainer.callbacks.clips", "3"], 1),
    (["--trainer.logger", "false"], 1),
    (["--trainer.logger.project", "x"], 1),
    (["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "x"], 1),
    (["--trainer.strategy", "lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.static_graph", "true"], 1),
    (["--model.conditions", "[vocal_semantic]"], 1),
]


@pytest.mark.parametrize(("options", "layers"), ACCEPTED, ids=[" ".join(case[0]) for case in ACCEPTED])
def test_every_way_to_write_a_key_is_still_accepted(config, options, layers):
    read = read_config("fit", ["--config", config, *options])
    assert read.model.init_args.backbone.layers == layers
    assert read.as_dict() != read_config("fit", ["--config", config]).as_dict()


@pytest.mark.parametrize("key", ["attention", "compile_blocks"])
def test_keys_of_earlier_versions_name_the_key_that_replaces_them(config, capsys, key):
    Path("c.yaml").write_text(CONFIG.replace("    pattern: flattened\n", f"    pattern: flattened\n    {key}: x\n"))
    message = refusal(capsys, "fit", "--config", config)
    assert f"unknown key 'model.{key}'" in message
    assert "c.yaml, line 5" in message
    assert "replaced by model.kernels" in message
    Path("c.yaml").write_text(CONFIG)
    assert "replaced by model.kernels" in refusal(capsys, "fit", "--config", config, f"--model.{key}", "x")
