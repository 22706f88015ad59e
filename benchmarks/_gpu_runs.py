"""Real runs of ``fit`` on a GPU: two steps of every file under experiments/, and a killed run against a whole one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from hafm_lightning.cli import main as run_command
from hafm_lightning.shards import STORED_STREAMS, Manifest, row_shape, stream_description, write_shard

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def write_random_shards(root: Path, clips: int, duration_s: float) -> Path:
    """Shards of random tokens with every stream, for both splits that ``fit`` reads."""
    random = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        arrays = {
            name: random.integers(0, stream.vocabulary, (clips, *row_shape(stream, duration_s)), np.uint16)
            for name, stream in STORED_STREAMS.items()
        }
        ids = [f"{split} {row}@0.00" for row in range(clips)]
        info = write_shard(root / split / "shard-00000.safetensors", arrays, ids, duration_s)
        Manifest(
            split=split,
            duration_s=duration_s,
            streams={name: stream_description(stream) for name, stream in STORED_STREAMS.items()},
            tokenizers={
                "semantic": {"kind": "offline-semantic", "sha256": "a1"},
                "acoustic": {"kind": "offline-acoustic", "sha256": "b2"},
            },
            resampler="soxr-hq",
            preparation={},
            styles=[f"style {number}" for number in range(STORED_STREAMS["style"].vocabulary)],
            shards=[info],
        ).save(root / split)
    return root


def training_files() -> Iterator[Path]:
    """The configurations that train, those of the recommended model first."""
    files = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if "trainer" in yaml.safe_load(path.read_text())]
    yield from sorted(files, key=lambda path: path.parent.name != "aligned")


def try_experiments(
    shards: Path, device: str, tiny: bool, seconds: float, store: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Two steps of each file through the real command; what no time is left for is not run."""
    began, found = time.perf_counter(), dict[str, Any]()
    for path in training_files():
        name = str(path.relative_to(EXPERIMENTS))
        if time.perf_counter() - began > seconds:
            found[name] = "not run: no time left"
            continue
        config = shards.parent / name.replace("/", "-")
        config.write_text(without_songs(path))
        arguments = ["fit", "--config", str(config), "--data.root", str(shards), "--trainer.fast_dev_run", "2"]
        arguments += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu", "--trainer.devices", "1"]
        if tiny:
            backbone = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24}
            arguments += ["--data.batch_size", "2", "--trainer.precision", "32-true"]
            arguments += [x for key, value in backbone.items() for x in (f"--model.backbone.{key}", str(value))]
        started = time.perf_counter()
        try:
            code: Any = run_command(arguments)
        except (Exception, SystemExit):  # noqa: BLE001 - what fails is the result
            code = traceback.format_exc().strip().splitlines()[-1][:300]
        found[name] = {"exit": code, "seconds": round(time.perf_counter() - started, 1)}
        if device == "cuda":
            found[name]["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        store(found)
    return found


def without_songs(path: Path) -> str:
    """A configuration in which no music is measured: there are no songs beside random tokens."""
    settings = yaml.safe_load(path.read_text())
    for callback in settings["trainer"].get("callbacks", []):
        if callback["class_path"].endswith("MusicEvaluation"):
            callback["init_args"]["root"] = None
    return yaml.safe_dump(settings)


def compare_resumed(shards: Path, folder: Path, device: str, tiny: bool) -> dict[str, Any]:
    """Weights of a run of six steps against one that was killed after its third and continued."""
    whole, broken = (fit_command(shards, folder / name, device, tiny) for name in ("whole", "broken"))
    subprocess.run(whole, check=True, capture_output=True)
    process = subprocess.Popen([*broken, "--trainer.limit_train_batches", "100000"], stdout=subprocess.DEVNULL)
    saved = wait_for(lambda: sorted((folder / "broken").rglob("*.ckpt")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*broken, "--ckpt_path", "auto"], check=True, capture_output=True)
    one, other = (weights(folder / name) for name in ("whole", "broken"))
    differences = [float((one[key].double() - other[key].double()).abs().max()) for key in one]
    return {"killed_after": saved[0].name, "largest_difference_of_weights": max(differences)}


def fit_command(shards: Path, root: Path, device: str, tiny: bool) -> list[str]:
    """Six deterministic steps of the recommended semantic stage, saved every three."""
    size = {"layers": 2, "width": 32, "heads": 2, "feedforward": 48} if tiny else {"layers": 4}
    settings = {f"model.backbone.{key}": value for key, value in size.items()} | {
        "data.root": shards, "data.batch_size": 2 if tiny else 12,
        "checkpoints.every_steps": 3,
        "trainer.max_steps": 6, "trainer.accelerator": "gpu" if device == "cuda" else "cpu", "trainer.devices": 1,
        "trainer.precision": "16-mixed" if device == "cuda" else "32-true", "trainer.deterministic": "true",
        "trainer.default_root_dir": root, "trainer.limit_val_batches": 0, "trainer.logger": "false",
    }  # fmt: skip
    arguments = [x for key, value in settings.items() for x in (f"--{key}", str(value))]
    config = EXPERIMENTS / "aligned" / "semantic.yaml"
    return [sys.executable, "-m", "hafm_lightning", "fit", "--config", str(config), *arguments]


def wait_for(found: Callable[[], list[Path]], process: subprocess.Popen[bytes]) -> list[Path]:
    """What appears, while a process runs or after it ended."""
    while not (paths := found()) and process.poll() is None:
        time.sleep(0.02)
    if not (paths or (paths := found())):
        raise RuntimeError(f"the run ended with exit code {process.returncode} and no checkpoint")
    return paths


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest checkpoint."""
    newest = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    state: dict[str, torch.Tensor] = torch.load(newest, map_location="cpu", weights_only=True)["state_dict"]
    return state
