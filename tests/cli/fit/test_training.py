"""fit, validate, test, predict through the command line: what works, and how mistakes are told."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from key_cases import refusal
from tiny_shards import write_tiny_shards, write_tiny_split

from hafm_lightning.cli import main
from hafm_lightning.cli.fit.runs import best_checkpoint, newest_run
from hafm_lightning.cli.fit.training import read_config

TINY_STAGE = {"backbone": {"layers": 1, "width": 16, "heads": 2, "feedforward": 24}, "conditioning": "aligned"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_tiny_shards(folder / "shards", train=(4, 4), validation=(3,), test=(3,))
    return folder


def config_of(base: Path, **trainer) -> dict:
    return {
        "seed_everything": 1,
        "model": {"class_path": "hafm_lightning.stages.SemanticStage", "init_args": dict(TINY_STAGE)},
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(base / "shards"), "batch_size": 4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **trainer,
        },
    }


@pytest.fixture
def config(base, tmp_path, monkeypatch):
    """A working configuration file in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config_of(base), sort_keys=False))
    return path


def test_fit_then_continue_validate_test_and_predict(config, capsys):
    assert main(["fit", "--config", str(config)]) == 0
    run = config.parent / "logs" / "tiny" / "run-000"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "step-00000002.ckpt"]
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["use_distributed_sampler"] is False
    assert saved["model"]["init_args"]["backbone"]["width"] == 16

    assert main(["fit", "--config", str(config), "--ckpt_path", "auto", "--trainer.max_steps", "4"]) == 0
    assert (run / "checkpoints" / "step-00000004.ckpt").is_file()
    assert newest_run(config.parent / "logs" / "tiny") == run, "a continued run stays in its folder"
    with (run / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == ["0", "1", "2", "3"]

    assert main(["fit", "--config", str(config)]) == 0, "a second fit must not trip over the first one's files"
    assert newest_run(config.parent / "logs" / "tiny").name == "run-001"

    assert saved["ckpt_path"] is None
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0, "what a run has saved starts the next one"
    assert newest_run(config.parent / "logs" / "tiny").name == "run-002"

    best = str(run / "checkpoints" / "best.ckpt")
    capsys.readouterr()
    for command in ("validate", "test"):
        assert main([command, "--config", str(config), "--ckpt_path", best]) == 0
        assert "loss" in capsys.readouterr().out
    assert main(["predict", "--config", str(config), "--ckpt_path", "auto"]) == 0
    with Path(capsys.readouterr().out.strip().splitlines()[-1]).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["clip_ids"] for row in rows} == {f"test 0-{i}@0.00" for i in range(3)}
    assert all(float(row["loss"]) > 0 for row in rows)


@pytest.mark.cpu
def test_float16_weights_are_refused_for_training_and_are_scored(config):
    """A compiled function that reads another type ends the process, so this test runs others."""
    assert main(["fit", "--config", str(config)]) == 0
    expected = {"fit": 2, "validate": 0}
    for command, code in expected.items():
        words = [sys.executable, "-m", "hafm_lightning", command, "--config", str(config)]
        words += ["--trainer.precision", "16-true"] + ["--ckpt_path", "auto"] * (command == "validate")
        ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert ended.returncode == code, ended.stderr[-2000:]
        if code:
            assert "precision 16-true" in ended.stderr
            assert len(ended.stderr.splitlines()) <= 5


@pytest.mark.cpu
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_types_of_weights_train_and_are_scored_in_a_process_of_their_own(config, precision):
    """A compiled function that reads another type ends the process, so this one only looks on."""
    for words in (["fit"], ["validate", "--ckpt_path", "auto"]):
        command = [sys.executable, "-m", "hafm_lightning", *words, "--config", str(config)]
        ended = subprocess.run(
            [*command, "--trainer.precision", precision], capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
    run = config.parent / "logs" / "tiny" / "run-000"
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2
    assert all(5 < loss < 8 for loss in losses), "that of some 500 tokens, none of which is known yet"
    assert "6." in ended.stdout


def test_loggers_get_the_resolved_configuration_and_the_csv_stays(config):
    from resume_child import Recorder

    arguments = ["--trainer.logger", "resume_child.Recorder", "--data.batch_size", "2"]
    assert main(["fit", "--config", str(config), *arguments]) == 0
    assert Recorder.told["data"]["init_args"]["batch_size"] == 2
    assert Recorder.told["model"]["init_args"]["backbone"]["width"] == 16
    assert Recorder.told["checkpoints"]["every_steps"] == 1000
    assert (config.parent / "logs" / "tiny" / "run-000" / "metrics.csv").is_file()


def test_a_saved_configuration_makes_the_same_run_again_beside_the_first(config):
    assert main(["fit", "--config", str(config), "--data.batch_size", "2"]) == 0
    assert main(["fit", "--config", str(config), "--data.batch_size", "2", "--ckpt_path", "auto"]) == 0
    root = config.parent / "logs" / "tiny"
    assert main(["fit", "--config", str(root / "run-000" / "config.yaml")]) == 0
    assert [path.name for path in sorted(root.iterdir())] == ["run-000", "run-001"]
    first, again = ((root / run / "config.yaml").read_text() for run in ("run-000", "run-001"))
    assert first == again
    losses = []
    for run in ("run-000", "run-001"):
        with (root / run / "metrics.csv").open() as file:
            losses.append([row["train/loss"] for row in csv.DictReader(file)][:2])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stage", ["SemanticStage", "CoarseStage", "FineStage"])
def test_a_trial_run_of_each_stage_leaves_nothing_behind(config, stage):
    config.write_text(config.read_text().replace("SemanticStage", stage))
    before = sorted(config.parent.rglob("*"))
    assert main(["fit", "--config", str(config), "--trainer.fast_dev_run", "true"]) == 0
    assert sorted(config.parent.rglob("*")) == before


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "16", "64-true"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_recommended_precisions_train_with_clipped_gradients(config, capsys, precision, algorithm):
    clipping = ["--trainer.gradient_clip_val", "0.5", "--trainer.gradient_clip_algorithm", algorithm]
    assert main(["fit", "--config", str(config), "--trainer.precision", precision, *clipping]) == 0
    said = capsys.readouterr().err
    assert ("takes bf16-mixed" in said) is precision.startswith("16")
    assert "You passed `Trainer" not in said


def test_overrides_reach_classes_by_short_names(config):
    read = read_config("fit", ["--config", str(config), "--data.batch_size", "3", "--model.guidance_dropout", "0.25"])
    assert read.data.init_args.batch_size == 3
    assert read.model.init_args.guidance_dropout == 0.25


CHANGES = {
    "a misspelt setting of the model": (
        ("guidance_dropout: 0.1", "gidance_dropout: 0.1"),
        "guidance_dropout",
        "line 5",
    ),
    "a misspelt setting of a nested class": (("width: 16", "widht: 16"), "width", "model.backbone.widht"),
    "a misspelt setting of the trainer": (("max_steps: 2", "max_step: 2"), "max_steps", "trainer.max_step"),
    "a misspelt section": (("trainer:", "trianer:"), "did you mean 'trainer'", "line"),
    "a wrong type": (("max_steps: 2", "max_steps: two"), "must be int", "'two'"),
    "a wrong choice": (("conditioning: aligned", "conditioning: alined"), "'prefix', 'aligned'", "model.conditioning"),
    "a missing class": (("stages.SemanticStage", "stages.SematicStage"), "SemanticStage", "line 3"),
    "a bad interpolation": (("max_steps: 2", "max_steps: ${model.nope}"), "model.nope", "trainer.max_steps"),
    "broken YAML": (("trainer:", "trainer: [}"), "line", "broken.yaml"),
}


@pytest.mark.parametrize("mistake", CHANGES)
def test_a_mistake_in_the_file_is_told_with_its_place(config, capsys, mistake):
    (old, new), *expected = CHANGES[mistake]
    text = config.read_text().replace(
        "init_args:\n    backbone", "init_args:\n    guidance_dropout: 0.1\n    backbone", 1
    )
    assert old in text
    broken = config.with_name("broken.yaml")
    broken.write_text(text.replace(old, new, 1))
    message = refusal(capsys, "fit", "--config", str(broken))
    for words in (*expected, "broken.yaml"):
        assert words in message, message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.batchsize", "2"], ("unknown", "batch_size", "command line")),
        (["--trainr.max_steps", "2"], ("--trainr.max_steps", "trainer")),
        (["--data.batch_size", "many"], ("must be int", "'many'", "command line")),
        (["--data.batch_size", "0"], ("batch_size is 0", "start at 1")),
        (["--data.batch_size", "99"], ("has 8 clips", "--data.batch_size 8")),
        (["--data.root", "nowhere"], ("nowhere does not exist",)),
        (["--data.crop_s", "0.05"], ("multiple of 0.04",)),
        (["--trainer.precision", "17"], ("trainer.precision", "17")),
        (["--trainer.accelerator", "gpu"], ("gpu",)),
        (["--ckpt_path", "absent.ckpt"], ("absent.ckpt", "auto")),
        (["--ckpt_path", "https://example.org/a.ckpt"], ("local files", "download")),
        (["surplus"], ("surplus",)),
        (["--checkpoints.keep", "0"], ("checkpoints.keep must be above 0",)),
        (["--model.optimizer.schedule", "cosine"], ("cosine", "total_steps")),
    ],
)
def test_a_mistake_on_the_command_line_is_told(config, capsys, arguments, words):
    message = refusal(capsys, "fit", "--config", str(config), *arguments)
    for word in words:
        assert word in message, message


def test_missing_files_and_sections(config, capsys, base):
    assert "absent.yaml does not exist" in refusal(capsys, "fit", "--config", "absent.yaml")
    assert "--config experiments/coarse.yaml" in refusal(capsys, "fit")
    content = config_of(base)
    del content["data"]
    config.write_text(yaml.safe_dump(content))
    assert "names no data" in refusal(capsys, "fit", "--config", str(config))


def test_nothing_is_written_by_a_refused_request(config, base, capsys, tmp_path):
    """Neither a run folder nor the folder of a W&B run, and a run's saved configuration stays as it was."""
    assert main(["fit", "--config", str(config)]) == 0
    checkpoint = best_checkpoint(tmp_path / "logs" / "tiny")
    write_tiny_shards(tmp_path / "others", train=(8,), sha256="other tokenizer")
    before = {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()}
    wandb = ["--trainer.logger", "hafm_lightning.callbacks.WandbDashboard"]
    music = "--trainer.callbacks+=hafm_lightning.callbacks.MusicEvaluation"
    for wrong, words in (
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.batch_size", "99"], "--data.batch_size 8"),
        (["--model.conditions", "[vocal_acoustic]"], "vocal_acoustic"),
        (["--ckpt_path", str(checkpoint), "--model.look_ahead_s", "0"], "look_ahead_s"),
        (["--ckpt_path", "auto", "--model.backbone.width", "32"], "width"),
        (["--ckpt_path", str(checkpoint), "--data.root", str(tmp_path / "others")], "different tokenizer"),
        (["--ckpt_path", "auto", "--data.batch_size", "2", "--trainer.logger", "false"], "batch_size"),
        ([music, "--trainer.callbacks.root", "no-songs"], "MUSDB18_HQ"),
        (["--trainer.precision", "16-true"], "bf16-mixed"),
        (["--trainer.precision", "transformer-engine"], "bf16-mixed"),
        (["--trainer.precision", "transformer-engine-float16"], "bf16-mixed"),
        (["--trainer.gradient_clip_val", "-1"], "gradient_clip_val"),
        (["--trainer.gradient_clip_algorithm", "value"], "--trainer.gradient_clip_val 1.0"),
    ):
        assert words in refusal(capsys, "fit", "--config", str(config), *wandb, *wrong)
        after = {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()}
        assert after == before, wrong
    assert [path.name for path in (tmp_path / "logs" / "tiny").iterdir()] == ["run-000"]


@pytest.mark.parametrize(
    ("content", "words"), [(bytes(range(256)), "YAML text"), (b"", "no settings"), (b"- a\n- b\n", "no settings")]
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, capsys, content, words):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    for command in ("fit", "describe"):
        message = refusal(capsys, command, "--config", str(path))
        assert words in message
        assert "odd.yaml" in message


def test_checkpoints_of_others_are_refused(config, base, capsys, tmp_path):
    assert main(["fit", "--config", str(config)]) == 0
    checkpoint = str(best_checkpoint(config.parent / "logs" / "tiny"))

    other = config_of(base)
    other["model"]["class_path"] = "hafm_lightning.stages.CoarseStage"
    path = tmp_path / "coarse.yaml"
    path.write_text(yaml.safe_dump(other))
    for command in ("fit", "validate"):
        message = refusal(capsys, command, "--config", str(path), "--ckpt_path", checkpoint)
        assert "SemanticStage" in message
        assert "CoarseStage" in message

    message = refusal(capsys, "fit", "--config", str(config), "--ckpt_path", checkpoint, "--model.look_ahead_s", "0")
    assert "look_ahead_s" in message

    write_tiny_shards(tmp_path / "others", train=(8,), sha256="other tokenizer")
    arguments = ["--config", str(config), "--ckpt_path", checkpoint, "--data.root", str(tmp_path / "others")]
    assert "different tokenizer" in refusal(capsys, "validate", *arguments)

    hostile = tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {}, "loops": print}, hostile)
    message = refusal(capsys, "fit", "--config", str(config), "--ckpt_path", str(hostile))
    assert "not a readable checkpoint (it holds more than data" in message
    half = tmp_path / "half.ckpt"
    half.write_bytes(Path(checkpoint).read_bytes()[:1000])
    message = refusal(capsys, "test", "--config", str(config), "--ckpt_path", str(half))
    assert "not a readable checkpoint (it is no file of PyTorch, or cut short)" in message


def test_shards_without_a_stream_of_the_stage_are_refused(config, capsys):
    message = refusal(capsys, "fit", "--config", str(config), "--model.conditions", "[vocal_acoustic]")
    assert "vocal_acoustic" in message


def test_ids_out_of_range_are_refused_before_the_first_step(config, capsys, tmp_path):
    from faults import poison

    write_tiny_shards(tmp_path / "poisoned", train=(8,))
    write_tiny_split(tmp_path / "poisoned", "validation", (3,))
    poison(tmp_path / "poisoned" / "train" / "shard-00000.safetensors", offset_from_end=2)
    message = refusal(capsys, "fit", "--config", str(config), "--data.root", str(tmp_path / "poisoned"))
    assert "5000" in message
    assert not (config.parent / "logs").exists()
