"""``fit`` in processes of their own: killed and continued against whole, and a run as the paper's with validation."""

from __future__ import annotations

import csv
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _gpu_runs import EXPERIMENTS, TINY, as_options, without_songs
from torch import Tensor

STEPS, SAVED_EVERY = 30, 3
SHOWN_LINES = 25
"""Most lines of a failed run that an error shows."""


def compare_resumed(shards: Path, folder: Path, device: str, tiny: bool) -> dict[str, Any]:
    """Weights and moments of a whole run beside those of one that was killed with -9 after a checkpoint and continued.

    Raises:
        RuntimeError: A run failed, ended before it was killed, or began again; the message holds its output.
    """
    whole, broken = (fit_command(shards, folder / name, device, tiny) for name in ("whole", "broken"))
    began = time.perf_counter()
    completed(whole)
    whole_s = time.perf_counter() - began
    killed_after = kill_after_checkpoint(broken, folder / "broken", folder / "broken.log")
    said = completed([*broken, "--ckpt_path", "auto"])
    if "continuing from" not in said:
        raise RuntimeError(f"the killed run did not continue:\n{last_lines(said)}")
    one, other = (saved_tensors(folder / name) for name in ("whole", "broken"))
    if one.keys() != other.keys():
        raise RuntimeError(f"the checkpoints hold other tensors: {sorted(one.keys() ^ other.keys())[:5]}")
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    differences = [float((one[name].double() - other[name].double()).abs().max()) for name in unequal]
    return {
        "steps": STEPS,
        "killed_after_step": killed_after,
        "tensors": len(one),
        "bit_equal": not unequal,
        "unequal": unequal[:5],
        "largest_difference": max(differences, default=0.0),
        "seconds_of_the_whole_run": round(whole_s, 1),
    }


def fit_command(shards: Path, root: Path, device: str, tiny: bool) -> list[str]:
    """Deterministic steps of the recommended semantic stage with four layers, saved every :data:`SAVED_EVERY`."""
    settings: dict[str, Any] = {f"model.backbone.{key}": value for key, value in TINY.items()} if tiny else {}
    settings |= {
        "model.backbone.layers": 2 if tiny else 4, "data.root": shards, "data.global_batch_size": 2 if tiny else 12,
        "checkpoints.every_steps": SAVED_EVERY, "trainer.max_steps": STEPS, "trainer.deterministic": "true",
        "trainer.limit_val_batches": 0, "trainer.logger": "false", "trainer.default_root_dir": root,
    }  # fmt: skip
    return command(EXPERIMENTS / "aligned" / "semantic.yaml", settings | on_device(device))


def on_device(device: str) -> dict[str, Any]:
    """Settings of a run on one device, in the precision of the paper on a GPU."""
    cuda = device == "cuda"
    return {
        "trainer.accelerator": "gpu" if cuda else "cpu", "trainer.devices": 1,
        "trainer.precision": "16-mixed" if cuda else "32-true", "trainer.num_sanity_val_steps": 0,
        "trainer.enable_progress_bar": "false",
    }  # fmt: skip


def command(config: Path, settings: Mapping[str, Any]) -> list[str]:
    """The command line of a ``fit``, without music."""
    copy = Path(settings["data.root"]).parent / f"{config.parent.name}-{config.name}"
    copy.write_text(without_songs(config))
    return [sys.executable, "-m", "hafm_lightning", "fit", "--config", str(copy), *as_options(settings)]


def completed(arguments: list[str]) -> str:
    """Everything that a run writes; RuntimeError with its end if it fails."""
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fit ended with exit code {done.returncode}:\n{last_lines(done.stdout)}")
    return done.stdout


def last_lines(text: str) -> str:
    """The end of an output."""
    return "\n".join(text.strip().splitlines()[-SHOWN_LINES:])


def kill_after_checkpoint(arguments: list[str], root: Path, log: Path) -> int:
    """Kill a run with signal 9 as soon as it has saved a checkpoint; the optimizer steps in the newest one."""
    with log.open("wb") as output, subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None and not saved_steps(root):
                time.sleep(0.005)
        finally:
            process.kill()
    steps = saved_steps(root)
    if process.returncode != -signal.SIGKILL or not steps or max(steps) >= STEPS:
        raise RuntimeError(
            f"the run was not killed in its middle: exit code {process.returncode}, checkpoints of the steps {steps}:\n"
            f"{last_lines(log.read_text(errors='replace'))}"
        )
    return max(steps)


def checkpoints(root: Path) -> dict[int, Path]:
    """Optimizer steps -> checkpoint, of all runs under ``root``."""
    files = [(re.fullmatch(r"step-(\d+)\.ckpt", path.name), path) for path in root.rglob("*.ckpt")]
    return {int(match[1]): path for match, path in files if match}


def saved_steps(root: Path) -> list[int]:
    """The steps of :func:`checkpoints`, in order."""
    return sorted(checkpoints(root))


def saved_tensors(root: Path) -> dict[str, Tensor]:
    """Weights and the optimizer's moments after the last step, by name."""
    saved = torch.load(checkpoints(root)[STEPS], map_location="cpu", weights_only=True)
    tensors = dict(saved["state_dict"])
    for number, optimizer in enumerate(saved["optimizer_states"]):
        for parameter, state in optimizer["state"].items():
            tensors |= {
                f"optimizer {number}, parameter {parameter}, {key}": value
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
    return tensors


def fit_as_the_paper(
    shards: Path, folder: Path, device: str, tiny: bool, store: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Losses of the coarse stage at its full size, with gradients of three batches that are clipped, and validation.

    Raises:
        RuntimeError: A run failed, or logged no loss; with its output.
    """
    found: dict[str, Any] = {}
    for precision in ("16-mixed", "bf16-mixed"):
        root = folder / precision
        settings: dict[str, Any] = {f"model.backbone.{key}": value for key, value in TINY.items()} if tiny else {}
        settings |= on_device(device) | {
            "trainer.precision": precision, "data.root": shards, "data.global_batch_size": 2 if tiny else 4,
            "trainer.accumulate_grad_batches": 3, "trainer.gradient_clip_val": 1.0, "trainer.max_steps": 8,
            "trainer.val_check_interval": 12, "trainer.limit_val_batches": 2, "trainer.log_every_n_steps": 1,
            "trainer.enable_checkpointing": "false", "trainer.default_root_dir": root,
        }  # fmt: skip
        began = time.perf_counter()
        said = completed(command(EXPERIMENTS / "aligned" / "coarse.yaml", settings))
        rows = [row for path in root.rglob("metrics.csv") for row in csv.DictReader(path.read_text().splitlines())]
        losses = {key: [float(row[key]) for row in rows if row.get(key)] for key in ("train/loss", "val/loss")}
        if not all(losses.values()):
            raise RuntimeError(f"the run logged no loss ({losses}):\n{last_lines(said)}")
        found[precision] = {
            "train_loss": [round(value, 4) for value in losses["train/loss"]],
            "val_loss": [round(value, 4) for value in losses["val/loss"]],
            "finite": all(math.isfinite(value) for values in losses.values() for value in values),
            "falls": losses["train/loss"][-1] < losses["train/loss"][0],
            "seconds": round(time.perf_counter() - began, 1),
        }
        store(found)
    return found
