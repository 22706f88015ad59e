"""Settings changed at a resume: every key of a configuration is in the table, and is treated as the table says."""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from key_cases import refusal
from shipped import EXPERIMENTS, TRAINING, name_of
from tiny_shards import write_tiny_shards

import hafm_lightning.callbacks as callbacks
from hafm_lightning.cli import main
from hafm_lightning.cli.fit.continuation import (
    RULES,
    SETTINGS_KEY,
    TABLE,
    Change,
    changes_since,
    check_continuation,
    flat_settings,
    rule_of,
    treatment_of,
)
from hafm_lightning.cli.fit.training import StageCLI
from hafm_lightning.data_modules import Musdb18, TokenShards
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.optimizer import OptimizerConfig
from hafm_lightning.stages import STAGES

MODEL = {"backbone": {"layers": 1, "width": 16, "heads": 2, "feedforward": 24}, "conditioning": "aligned"}
EMA = {"class_path": "hafm_lightning.callbacks.EMA", "init_args": {"decay": 0.5}}


# --- the table ------------------------------------------------------------------------------------------------------


def keys_of_the_code():
    """Every key that a configuration can have, from the signatures of the classes that the YAML names."""
    for kind in STAGES.values():
        for name in inspect.signature(kind).parameters:
            if name not in ("backbone", "optimizer"):
                yield f"model.{name}"
    yield from (f"model.backbone.{field.name}" for field in dataclasses.fields(BackboneConfig))
    yield from (f"model.optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig))
    for kind in (TokenShards, Musdb18):
        yield from (f"data.{name}" for name in inspect.signature(kind).parameters)
    yield from (f"trainer.{name}" for name in inspect.signature(pl.Trainer).parameters)
    for section in ("Checkpoints", "Dashboard"):
        for name in inspect.signature(getattr(callbacks, section)).parameters:
            yield f"{section.lower()}.{name}"
    for name in ("EMA", "MusicEvaluation", "StepProgress"):
        yield f"trainer.callbacks.{name}"
        yield from (f"trainer.callbacks.{name}.{key}" for key in inspect.signature(getattr(callbacks, name)).parameters)


@pytest.mark.parametrize("key", sorted(set(keys_of_the_code())))
def test_every_key_of_the_code_is_in_the_table(key):
    assert rule_of(key) is not None, f"say in TABLE what becomes of {key} when it is changed at a resume"


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_every_key_of_a_shipped_configuration_is_in_the_table(path):
    missing = [key for key in flat_settings(yaml.safe_load(path.read_text())) if rule_of(key) is None]
    assert not missing


def test_every_key_that_fit_resolves_is_in_the_table():
    config = StageCLI("fit", ["--config", str(EXPERIMENTS / "semantic.yaml")], build="none")
    text = config._parser("fit").dump(config.config["fit"], skip_none=False)
    assert [key for key in flat_settings(yaml.safe_load(text)) if rule_of(key) is None] == []


def test_the_table_names_no_key_twice_and_none_that_does_not_exist():
    words = [word for keys in TABLE.values() for word in keys.split()]
    assert len(words) == len(set(words))
    known = {*keys_of_the_code(), "seed_everything", "ckpt_path", "weights_only", "allow_changes", "model.class_path"}
    known |= {"data.class_path"}
    assert not {key for key in RULES if not key.endswith(".*")} - known


def test_the_docs_have_the_same_table():
    text = (EXPERIMENTS.parent / "docs" / "reproduction.md").read_text()
    section = text.partition("### Settings changed at a resume")[2].partition("\n### ")[0].partition("\n## ")[0]
    for treatment, keys in TABLE.items():
        (row,) = [line for line in section.splitlines() if line.startswith(f"| {treatment} |")]
        assert set(re.findall(r"`([\w.*]+)`", row.split(" | ")[2])) == set(keys.split()), treatment


@pytest.mark.parametrize(
    ("key", "treatment"),
    [
        ("model.my_loss", "refused"),
        ("data.mine", "refused"),
        ("trainer.new", "refused"),
        ("trainer.callbacks.Mine", "applied"),
        ("trainer.callbacks.Mine.size", "applied"),
    ],
)
def test_keys_of_other_classes(key, treatment):
    assert rule_of(key) is None
    assert treatment_of(key) == treatment


def test_what_counts_as_a_change():
    saved = {"seed_everything": 1, "trainer.max_steps": 2, "model.old": 1, "trainer.callbacks.EMA": True}
    now = {"seed_everything": 1, "trainer.max_steps": 4, "trainer.log_every_n_steps": 7, "model.new": 3}
    assert changes_since(saved, now) == [
        Change("trainer.callbacks.EMA", True, False),
        Change("trainer.max_steps", 2, 4),
    ]


def test_settings_that_a_class_does_not_apply_are_refused():
    change = Change("model.optimizer.learning_rate", 1e-3, 1e-4)
    assert check_continuation([change], allowed=False) == [change]
    with pytest.raises(RequestError, match=r"learning_rate 0.001 -> 0.0001(.|\n)*--allow_changes true"):
        check_continuation([change], allowed=False, unapplied=("model.optimizer.",))
    assert check_continuation([change], allowed=True, unapplied=("model.optimizer.",)) == [change]


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A configuration, and the checkpoint of its first two steps."""
    folder = tmp_path_factory.mktemp("continuation")
    for name in ("shards", "others"):
        write_tiny_shards(folder / name, train=(4, 4), validation=(3,), test=(3,))
    content = {
        "seed_everything": 1,
        "model": {
            "class_path": "hafm_lightning.stages.SemanticStage",
            "init_args": {**MODEL, "optimizer": {"learning_rate": 1e-3}},
        },
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(folder / "shards"), "batch_size": 4, "crop_s": 0.4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "logs"),
            "callbacks": [EMA],
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["fit", "--config", str(folder / "tiny.yaml")]) == 0
    return folder


def continued(base: Path, name: str, *options: str, steps: int = 4) -> dict:
    """The checkpoint after ``steps`` steps, in a run folder of its own, from that after two."""
    root = base / name
    start = base / "logs" / "run-000" / "checkpoints" / "step-00000002.ckpt"
    arguments = ["--ckpt_path", str(start), "--trainer.max_steps", str(steps), "--trainer.default_root_dir", str(root)]
    assert main(["fit", "--config", str(base / "tiny.yaml"), *arguments, *options]) == 0
    return torch.load(root / "run-000" / "checkpoints" / f"step-{steps:08d}.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def unchanged(base):
    return continued(base, "unchanged")


def group_of(checkpoint: dict) -> dict:
    return checkpoint["optimizer_states"][0]["param_groups"][0]


RATE = "--model.optimizer.learning_rate"
ACTS = {
    # key -> options, and what the checkpoint after four steps holds then (None: other weights)
    "model.optimizer.learning_rate": ([RATE, "1e-5"], lambda c: group_of(c)["lr"] == 1e-5),
    "model.optimizer.weight_decay": (
        ["--model.optimizer.weight_decay", "0.5"],
        lambda c: group_of(c)["weight_decay"] == 0.5,
    ),
    "model.optimizer.beta1": (["--model.optimizer.beta1", "0.5"], lambda c: group_of(c)["betas"][0] == 0.5),
    "model.optimizer.beta2": (["--model.optimizer.beta2", "0.9"], lambda c: group_of(c)["betas"][1] == 0.9),
    # the rate for the next step, the fifth
    "model.optimizer.warmup_steps": (
        ["--model.optimizer.warmup_steps", "10"],
        lambda c: group_of(c)["lr"] == pytest.approx(1e-3 * 5 / 10),
    ),
    "model.optimizer.schedule": (
        ["--model.optimizer.schedule", "cosine", "--model.optimizer.total_steps", "8"],
        lambda c: group_of(c)["lr"] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 4 / 8)))),
    ),
    "model.guidance_dropout": (["--model.guidance_dropout", "0.9"], lambda c: True),
    "model.backbone.dropout": (["--model.backbone.dropout", "0.5"], lambda c: True),
    "trainer.accumulate_grad_batches": (
        ["--trainer.accumulate_grad_batches", "2"],
        lambda c: c["callbacks"]["ExactResume"]["batches"] == 2 + 2 * 2,
    ),
    "trainer.gradient_clip_val": (["--trainer.gradient_clip_val", "1e-7"], lambda c: True),
    "trainer.precision": (["--trainer.precision", "bf16-mixed"], lambda c: True),
    "trainer.callbacks.EMA.decay": (["--trainer.callbacks.decay", "0.01"], lambda c: True),
    "trainer.callbacks.EMA.every_steps": (
        ["--trainer.callbacks.every_steps", "2"],
        lambda c: c["callbacks"]["EMA"]["updates"] == 2 + 1,
    ),
}
BY_ANOTHER_NAME = {"model.optimizer.total_steps", "model.optimizer.final_fraction", "trainer.max_steps"}
"""Part of the cases above."""
TO_ROUNDING_OR_THE_END = {
    "model.kernels", "model.optimizer.fused", "trainer.accelerator", "trainer.strategy", "trainer.plugins",
    "trainer.sync_batchnorm", "trainer.deterministic", "trainer.benchmark", "trainer.min_steps", "trainer.max_epochs",
    "trainer.min_epochs", "trainer.max_time", "trainer.limit_val_batches", "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch", "trainer.gradient_clip_algorithm", "trainer.callbacks.EMA",
}  # fmt: skip
"""Arguments of Lightning's Trainer or of torch that no checkpoint brings back."""


def test_every_applied_key_has_a_case():
    applied = {key for key in TABLE["applied"].split() if not key.endswith(".*")}
    assert applied == {*ACTS, *BY_ANOTHER_NAME, *TO_ROUNDING_OR_THE_END}


@pytest.mark.parametrize("key", ACTS)
def test_an_applied_setting_acts_and_is_told(base, unchanged, key, capsys):
    options, holds = ACTS[key]
    capsys.readouterr()
    checkpoint = continued(base, key.replace(".", "-"), *options)
    said = capsys.readouterr().err
    assert "settings changed after step 2: " in said
    assert f"{key} " in said
    assert holds(checkpoint)
    weights = (checkpoint["state_dict"], unchanged["state_dict"])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "it changes nothing"
    recorded = checkpoint[SETTINGS_KEY]["changes"]
    assert key in [changed for _, changed, _, _ in recorded]
    config = (base / key.replace(".", "-") / "run-000" / "config.yaml").read_text()
    assert f"# changed after step 2: {key} " in config
    assert yaml.safe_load(config)["seed_everything"] == 1


def test_a_rate_after_a_resume_is_that_of_a_run_that_was_started_with_it(base):
    """It was the checkpoint's rate, with the new one in config.yaml."""
    schedule = ["--model.optimizer.schedule", "cosine", "--model.optimizer.total_steps", "9"]
    options = [RATE, "3e-4", "--model.optimizer.warmup_steps", "3", *schedule]
    arguments = ["--trainer.max_steps", "4", "--trainer.default_root_dir", str(base / "started")]
    assert main(["fit", "--config", str(base / "tiny.yaml"), *arguments, *options]) == 0
    started = base / "started" / "run-000" / "checkpoints" / "step-00000004.ckpt"
    fresh = torch.load(started, weights_only=True)
    changed = continued(base, "resumed-rate", *options)
    assert group_of(changed) == group_of(fresh)
    assert changed["lr_schedulers"] == fresh["lr_schedulers"]


REFUSED = {
    "seed_everything": ["--seed_everything", "2"],
    "trainer.limit_train_batches": ["--trainer.limit_train_batches", "1"],
    "trainer.overfit_batches": ["--trainer.overfit_batches", "1"],
    "trainer.reload_dataloaders_every_n_epochs": ["--trainer.reload_dataloaders_every_n_epochs", "1"],
    "trainer.use_distributed_sampler": ["--trainer.use_distributed_sampler", "true"],
    "model.pattern": ["--model.pattern", "parallel"],
    "model.conditioning": ["--model.conditioning", "prefix"],
    "model.relative_position": ["--model.relative_position", "index"],
    "model.prefix_mask": ["--model.prefix_mask", "bidirectional"],
    "model.look_ahead_s": ["--model.look_ahead_s", "0.1"],
    "model.look_behind_s": ["--model.look_behind_s", "0.1"],
    "model.backbone.layers": ["--model.backbone.layers", "2"],
    "model.backbone.width": ["--model.backbone.width", "32"],
    "model.backbone.heads": ["--model.backbone.heads", "4"],
    "model.backbone.feedforward": ["--model.backbone.feedforward", "48"],
    "data.batch_size": ["--data.batch_size", "2"],
    "data.crop_s": ["--data.crop_s", "0.2"],
    "data.seed": ["--data.seed", "3"],
    "data.shuffle": ["--data.shuffle", "false"],
    "data.drop_last": ["--data.drop_last", "false"],
}
ELSEWHERE = {
    "model.class_path": "below", "data.class_path": "another data module", "model.conditions": "test_training.py",
    "data.root": "below", "data.global_batch_size": "test_batch_division.py",
    "trainer.devices": "test_exact_resume.py", "trainer.num_nodes": "as devices",
    **dict.fromkeys(("data.path", "data.tokenizers_from", "data.clip_s", "data.hop_s"), "Musdb18: other shards"),
}  # fmt: skip


def test_every_refused_key_has_a_case():
    refused = {key for kind in ("refused", "network", "data") for key in TABLE[kind].split()}
    assert refused == {*REFUSED, *ELSEWHERE}


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_setting_is_named_with_the_way(base, key, capsys):
    before = sorted(base.rglob("*"))
    arguments = ["--config", str(base / "tiny.yaml"), "--ckpt_path", "auto", "--trainer.max_steps", "4"]
    message = refusal(capsys, "fit", *arguments, *REFUSED[key])
    assert key.rpartition(".")[2] in message
    assert "--allow_changes true" in message or "start a new run (without --ckpt_path)" in message
    assert sorted(base.rglob("*")) == before


@pytest.mark.parametrize("key", ["seed_everything", "data.batch_size"])
def test_an_allowed_change_acts(base, unchanged, key, capsys):
    capsys.readouterr()
    checkpoint = continued(base, f"allowed-{key}", *REFUSED[key], "--allow_changes", "true")
    if key == "seed_everything":
        assert checkpoint["callbacks"]["ExactResume"]["seed"] == 2
        assert "seed_everything 1 -> 2" in capsys.readouterr().err
    weights = (checkpoint["state_dict"], unchanged["state_dict"])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_copy_of_the_data_continues_the_run(base, unchanged):
    checkpoint = continued(base, "moved", "--data.root", str(base / "others"))
    assert all(torch.equal(checkpoint["state_dict"][n], value) for n, value in unchanged["state_dict"].items())


def test_a_checkpoint_without_settings_continues_with_a_line(base, capsys, tmp_path):
    whole = torch.load(base / "logs" / "run-000" / "checkpoints" / "step-00000002.ckpt", weights_only=True)
    del whole[SETTINGS_KEY]
    torch.save(whole, tmp_path / "old.ckpt")
    arguments = ["--ckpt_path", str(tmp_path / "old.ckpt"), "--trainer.default_root_dir", str(tmp_path / "logs")]
    assert main(["fit", "--config", str(base / "tiny.yaml"), *arguments, "--trainer.max_steps", "3", RATE, "1e-5"]) == 0
    assert "does not record the settings of its run" in capsys.readouterr().err
    new = torch.load(tmp_path / "logs" / "run-000" / "checkpoints" / "step-00000003.ckpt", weights_only=True)
    assert group_of(new)["lr"] == 1e-5


def test_a_run_that_is_complete_says_so(base, capsys):
    assert main(["fit", "--config", str(base / "tiny.yaml"), "--ckpt_path", "auto"]) == 0
    assert "nothing is left to train" in capsys.readouterr().err
