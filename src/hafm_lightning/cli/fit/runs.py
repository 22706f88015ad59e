"""Run folders, one for each fit, and their checkpoints, found by name.

``trainer.default_root_dir`` (default ``logs/<name of the configuration>``) holds ``run-000``, ``run-001``, ...; each
holds ``config.yaml``, ``metrics.csv`` and ``checkpoints/`` with ``step-00001000.ckpt`` ... and ``best.ckpt``.
:mod:`hafm_lightning.cli.fit.run_claim` makes and locks the folders.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch

from hafm_lightning.errors import RequestError

RUN_NAME = re.compile(r"run-(\d+)")
STEP_NAME = re.compile(r"step-(\d+)\.ckpt$")
CHECKPOINTS = "checkpoints"
BEST = "best.ckpt"
RESTARTS = "SLURM_RESTART_COUNT"
"""Environment variable: the number of times that SLURM has queued this job again; not set the first time."""
AUTO = "auto"
"""Value of ``--ckpt_path`` for the newest checkpoint."""


def is_requeued() -> bool:
    """Whether SLURM has queued this job again."""
    return int(os.environ.get(RESTARTS, "0")) > 0


def is_first() -> bool:
    """Whether this is the first, or the only, process of a run, by its launcher's environment variables."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    if {"LOCAL_RANK", "NODE_RANK"} & os.environ.keys():
        return int(os.environ.get("LOCAL_RANK", "0")) == int(os.environ.get("NODE_RANK", "0")) == 0
    return int(os.environ.get("SLURM_PROCID", "0")) == 0


def say(line: str) -> None:
    """A line on stderr, from the first of several processes."""
    if is_first():
        print(line, file=sys.stderr)


def runs(root: Path) -> list[Path]:
    """The run folders under ``root``, oldest first."""
    found = [path for path in root.glob("run-*") if RUN_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=run_number)


def run_number(path: Path) -> int:
    """Number in a run folder's name."""
    return int(path.name.removeprefix("run-"))


def newest_run(root: Path) -> Path | None:
    """The newest run folder under ``root``."""
    return next(reversed(runs(root)), None)


def next_run(root: Path, skip: int = 0) -> Path:
    """Path of the run folder to make next, after ``skip`` others whose names are taken."""
    newest = newest_run(root)
    return root / f"run-{(run_number(newest) + 1 if newest else 0) + skip:03d}"


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints: those saved at steps, the newest first, then the best one."""
    folder = run / CHECKPOINTS
    steps = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := STEP_NAME.search(path.name))]
    best = folder / BEST
    return [path for _, path in sorted(steps, reverse=True)] + [best] * best.is_file()


def saved_step(path: Path) -> int:
    """Optimizer steps done in a checkpoint, without reading its weights; ValueError if no fit can continue from it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:120]) from error
    if not isinstance(content, dict) or "loops" not in content:
        raise ValueError("not a training checkpoint")
    return int(content.get("global_step", 0))


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run with the most steps; a line on stderr for each that cannot be read."""
    readable: list[tuple[int, Path]] = []
    for path in checkpoints(run):
        if readable and path.name != BEST:
            continue  # an older one
        try:
            readable.append((saved_step(path), path))
        except ValueError as problem:
            say(f"skipping {path}: {problem}")
    return max(readable, key=lambda found: found[0])[1] if readable else None


def run_to_continue(root: Path, asked: str | None) -> tuple[Path | None, str | None]:
    """The run folder in which a fit continues (None for a new one), and its ``--ckpt_path``.

    Args:
        root: Folder of the runs.
        asked: Value of ``--ckpt_path``: none, ``auto``, or a file. A job that was queued again continues by itself.

    Raises:
        RequestError: There is no such file.
    """
    if asked is None and is_requeued():
        say("this job was queued again: --ckpt_path auto")
        asked = AUTO
    if asked is None:
        return None, None
    if asked == AUTO:
        run = newest_run(root)
        if run is None:
            say(f"--ckpt_path auto: no checkpoint under {root}, starting at step 0")
        return run, AUTO
    if not Path(asked).is_file():
        raise RequestError(f"--ckpt_path {asked}: no such file\n`--ckpt_path auto` finds the newest")
    run = Path(asked).resolve().parent.parent
    return (run if run.parent == root.resolve() else None), asked


def best_checkpoint(root: Path) -> Path:
    """The checkpoint with the best validation loss of the newest run under ``root`` (or of the run ``root`` itself).

    Raises:
        RequestError: There is no run, or it has no checkpoint yet.
    """
    run = root if (root / CHECKPOINTS).is_dir() else newest_run(root)
    best = run / CHECKPOINTS / BEST if run is not None else None
    if best is not None and best.is_file():
        return best
    newest = newest_checkpoint(run) if run is not None else None
    if newest is None:
        raise RequestError(f"no checkpoint under {root}\ntrain first, or name the file with --ckpt_path")
    return newest
