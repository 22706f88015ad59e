"""Wrong keys and values are refused at any depth, with their place and the right suggestion; good ones are not."""

from pathlib import Path

import pytest
import yaml

from hafm_lightning.cli import main
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.preparation.configuration import read_config as read_preparation

CONFIG = """\
model:
  class_path: hafm_lightning.stages.CoarseStage
  init_args:
    pattern: flattened
    backbone: {layers: 1, width: 16, heads: 2, feedforward: 24}
    optimizer:
      learning_rate: 1e-4
data:
  class_path: hafm_lightning.data_modules.TokenShards
  init_args:
    root: shards
    batch_size: 4
trainer:
  max_steps: 2
  logger:
    class_path: hafm_lightning.callbacks.WandbDashboard
    init_args:
      project: hafm
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args:
        monitor: val/loss
    - class_path: hafm_lightning.callbacks.MusicEvaluation
      init_args:
        root: null
        clips: 2
        sampling:
          temperature: 0.9
        embeddings:
          - name: logmel
checkpoints:
  keep: 2
"""
MUSIC = "hafm_lightning.callbacks.MusicEvaluation"
SHARDS = "hafm_lightning.data_modules.TokenShards"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    return "c.yaml"


def refusal(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) <= 5
    return printed.err


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


def test_the_printed_configuration_is_read_as_it_was_printed(config, capsys):
    given = ["--config", config, "--model.backbone.layers", "3"]
    assert main(["fit", *given, "--print_config"]) == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    first, again = (read_config("fit", arguments).as_dict() for arguments in (given, ["--config", "printed.yaml"]))
    assert first.pop("config") != again.pop("config")
    assert first == again


# --- prepare and evaluate -----------------------------------------------------------------------------------------

PREPARATION = """\
root: out
corpora:
  - {kind: ToyBand, path: toy}
clips:
  hop_s: 5
tokenizers:
  semantic:
    kind: Hubert
    layer: 9
separation:
  parameters:
    n_fft: 6144
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("clips:", "clip:", 4, "unknown key 'clip'; did you mean 'clips'?"),
        ("hop_s:", "hop-s:", 5, "unknown key 'clips.hop-s'; did you mean 'hop_s'?"),
        ("hop_s:", "Hop_S:", 5, "unknown key 'clips.Hop_S'; did you mean 'hop_s'?"),
        ("path:", "pth:", 3, "unknown key 'corpora.0.pth'; did you mean 'path'?"),
        ("layer:", "layr:", 9, "unknown key 'tokenizers.semantic.layr'; did you mean 'layer'?"),
        ("n_fft:", "nfft:", 12, "unknown key 'separation.parameters.nfft'; did you mean 'n_fft'?"),
        ("Hubert", "hubert", 8, "'tokenizers.semantic.kind' cannot be 'hubert'; did you mean 'Hubert'?"),
        ("Hubert", "Offline", 9, "unknown key 'tokenizers.semantic.layer'"),
        ("{kind: ToyBand, ", "{", 3, "'corpora.0.kind' is missing"),
        ("hop_s: 5", "hop_s: five", 5, "'clips.hop_s' must be float, got 'five'"),
        ("hop_s: 5", "hop_s: -1.0", 5, "clips: hop_s is -1.0, must be a positive multiple of 0.04 s"),
        ("hop_s: 5", "hop_s: ${root}", 5, "'clips.hop_s' must be float, got 'out'"),
        ("root: out", "root: ${nope}", 1, "root: Interpolation key 'nope' not found"),
        ("root: out", "seed: 1", None, "missing key root"),
        ("root: out", "root: [}", 1, "configuration file p.yaml is not YAML: expected the node content, but found '}'"),
    ],
)
def test_prepare_names_file_and_line(tmp_path, monkeypatch, capsys, old, new, line, message):
    monkeypatch.chdir(tmp_path)
    assert PREPARATION.count(old) == 1
    Path("p.yaml").write_text(PREPARATION.replace(old, new))
    what, _, meant = message.partition("; ")
    told = refusal(capsys, "prepare", "--config", "p.yaml")
    where = f"p.yaml, line {line}" if line else "p.yaml"
    assert told.startswith(f"error: {what}\nwhere: {where}\n{meant}")


@pytest.mark.parametrize("dashes", ["", "--"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("clips.hop=5", "unknown key 'clips.hop'; did you mean 'hop_s'?"),
        ("clips={hop: 5}", "unknown key 'clips.hop'; did you mean 'hop_s'?"),
        ("corpora.0.pth=x", "unknown key 'corpora.0.pth'; did you mean 'path'?"),
        ("corpora.0.kind=ToyBnd", "'corpora.0.kind' cannot be 'ToyBnd'; did you mean 'ToyBand'?"),
        ("tokenizers.semantic.layr=3", "unknown key 'tokenizers.semantic.layr'; did you mean 'layer'?"),
        ("noise_sigma.x=3", "unknown key 'noise_sigma.x'; 'noise_sigma' takes a value and has no keys of its own"),
        ("noise_sigma=1e-3x", "'noise_sigma' must be float, got '1e-3x'"),
        ("clips=5", "'clips' must be settings (key: value), got 5"),
        ("clips.hop_s=-1", "clips: hop_s is -1.0, must be a positive multiple of 0.04 s"),
        ("root=${nope}", "root: Interpolation key 'nope' not found"),
        ("clips={hop_s: 1, hop_s: 2}", "key 'hop_s' is set twice; keep one of the two"),
    ],
)
def test_prepare_names_the_option(tmp_path, monkeypatch, capsys, dashes, option, message):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PREPARATION)
    what, _, meant = message.partition("; ")
    told = refusal(capsys, "prepare", "--config", "p.yaml", dashes + option)
    assert told.startswith(f"error: {what}\nwhere: command line: --{option.partition('=')[0]}\n{meant}")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("temperature:", "temprature:", 7, "unknown key 'sampling.temprature'; did you mean 'temperature'?"),
        ("duration_s:", "duration:", 4, "unknown key 'protocols.0.duration'; did you mean 'duration_s'?"),
        ("name: logmel", "nam: logmel", 8, "unknown key 'embeddings.0.nam'; did you mean 'name'?"),
        ("root: songs", "systems: [rndom]", 2, "systems: unknown rndom; choose from"),
    ],
)
def test_evaluate_names_file_and_line(tmp_path, monkeypatch, capsys, old, new, line, message):
    monkeypatch.chdir(tmp_path)
    text = (
        "output: out\nroot: songs\nprotocols:\n  - {name: p, duration_s: 3}\ntokenizers: t\n"
        "sampling:\n  temperature: 1\nembeddings: [{name: logmel}]\n"
    )
    assert text.count(old) == 1
    Path("e.yaml").write_text(text.replace(old, new) + ("root: songs\n" if "root" in old else ""))
    what, _, meant = message.partition("; ")
    told = refusal(capsys, "evaluate", "--config", "e.yaml")
    assert told.startswith(f"error: {what}")
    assert f"where: e.yaml, line {line}\n" in told
    assert meant in told
    Path("e.yaml").write_text(text.replace("name: logmel", "name: logmel, name: logmel"))
    assert "key 'embeddings.0.name' is set twice\nwhere: e.yaml, lines 8 and 8" in refusal(
        capsys, "evaluate", "--config", "e.yaml"
    )


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
