"""Runs of a toy stage in processes of their own, and what they left."""

import csv
import json
from pathlib import Path

import torch
import yaml
from resume_child import finish, start

STEPS = 11


def write_config(folder: Path, **changes) -> Path:
    """A run of 11 steps over 4 batches an epoch, validated every 3 batches, saved every 2 steps."""
    config = {
        "seed_everything": 3,
        "model": {"class_path": "resume_child.ToyStage", "init_args": {"trace": str(folder / "trace")}},
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(folder.parent / "shards"), "batch_size": 2, "seed": 5, "crop_s": 0.2},
        },
        "checkpoints": {"every_steps": 2, "keep": 2},
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "devices": 1,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "logs"),
            "callbacks": [{"class_path": "hafm_lightning.callbacks.EMA", "init_args": {"decay": 0.9}}],
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        target = config[section]["init_args"] if section == "data" else config[section]
        target[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def add_callback(config: Path, class_path: str, **init_args) -> Path:
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append({"class_path": class_path, "init_args": init_args})
    path = config.with_name("config-with-callback.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def fit(config: Path, *arguments: str, processes: int = 1, log: str = "run", **environment: str) -> list[int]:
    return finish(start(["fit", "--config", str(config), *arguments], config.parent / log, processes, environment))


def log_of(config: Path, log: str = "run") -> str:
    return (config.parent / f"{log}-0.log").read_text()


def differences(a, b, name=""):
    """Paths at which two checkpoints differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{name}.{key} on one side" for key in set(a) ^ set(b)]
        return missing + [d for key in set(a) & set(b) for d in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{name}[{i}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [f"{name}: {a} != {b}"]


def last_checkpoint(folder: Path, step: int = STEPS):
    return load(folder / "logs" / "run-000" / "checkpoints" / f"step-{step:08d}.ckpt")


def load(path: Path):
    """A checkpoint without the settings of its run, which name folders and callbacks of the test."""
    content = torch.load(path, weights_only=True)
    del content["hafm_lightning_settings"]
    return content


def metrics(folder: Path) -> list[dict[str, str]]:
    """The logged values, without times and speeds."""
    with (folder / "logs" / "run-000" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    timed = ("seconds", "speed/", "system/")
    return [{k: v for k, v in row.items() if v and not k.startswith(timed)} for row in rows]


def steps_seen(folder: Path, rank: int = 0) -> dict:
    """(step, batch of the epoch) -> clips and random number; a step done twice must have seen the same both times."""
    seen = {}
    for line in (folder / f"trace-{rank}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        key = (entry["step"], entry["index"])
        value = (entry["clips"], entry["random"])
        assert seen.setdefault(key, value) == value, f"step {key} was repeated with something else"
    return seen


def assert_equal_runs(resumed: Path, whole: Path, processes: int = 1) -> None:
    found = differences(last_checkpoint(resumed), last_checkpoint(whole))
    assert found == [], "\n".join(found)
    best = [load(f / "logs" / "run-000" / "checkpoints" / "best.ckpt") for f in (resumed, whole)]
    assert differences(*best) == []
    for rank in range(processes):
        assert steps_seen(resumed, rank) == steps_seen(whole, rank)
    assert metrics(resumed) == metrics(whole)
