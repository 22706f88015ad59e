"""Run folders: every fit has its own, and ``--ckpt_path auto`` continues in the newest.

``trainer.default_root_dir`` (default ``logs/<name of the configuration>``) holds ``run-000``, ``run-001``, ...; each
holds ``config.yaml``, ``metrics.csv`` and ``checkpoints/`` with ``step-00001000.ckpt`` ... and ``best.ckpt``. A fit
that is not told to continue makes the next folder, so that nothing is overwritten. Here is what can be read from the
names; :mod:`hafm_lightning.cli.fit.run_claim` makes and locks the folder.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import torch

from hafm_lightning.checkpoint_format import METADATA_KEY
from hafm_lightning.errors import RequestError

RUN_NAME = re.compile(r"run-(\d+)$")
STEP_NAME = re.compile(r"step-(\d+)\.ckpt$")
CHECKPOINTS = "checkpoints"
BEST = "best.ckpt"
RESTARTS = "SLURM_RESTART_COUNT"
"""How often SLURM has queued this job again; not set the first time."""
AUTO = "auto"
"""Value of ``--ckpt_path`` that looks for the checkpoint itself."""


def is_first() -> bool:
    """Whether this is the first, or the only, process of a run, by what its launcher says."""
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
    found = [path for path in root.glob("run-*") if RUN_NAME.search(path.name) and path.is_dir()]
    return sorted(found, key=run_number)


def run_number(path: Path) -> int:
    """Number in a run folder's name."""
    match = RUN_NAME.search(path.name)
    assert match is not None
    return int(match[1])


def newest_run(root: Path) -> Path | None:
    """The newest run folder under ``root``."""
    return runs(root)[-1] if runs(root) else None


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
    """Optimizer steps done in a checkpoint; maps the weights without reading them.

    Raises:
        ValueError: Why it cannot be continued from.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:120]) from error
    if not isinstance(content, dict) or "loops" not in content:
        raise ValueError("not a training checkpoint")
    return int(content.get("global_step", 0))


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run with the most steps among those that can be read; what is skipped is said on stderr."""
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
    """The run folder that a fit asks to continue in, and what it asks for.

    Args:
        root: Folder of the runs.
        asked: Value of ``--ckpt_path``: none, ``auto``, or a file.

    Returns:
        The run, or None where the fit makes a new one; ``asked``, or ``auto`` for a job that was queued again.

    Raises:
        RequestError: There is no such file.
    """
    if asked is None and int(os.environ.get(RESTARTS, "0")) > 0:
        say("this job was queued again: --ckpt_path auto")
        asked = AUTO
    if asked is None:
        return None, None
    if asked == AUTO:
        run = newest_run(root)
        if run is None:
            say(f"--ckpt_path auto: no checkpoint under {root}, starting anew")
        return run, AUTO
    path = Path(asked)
    if not path.is_file():
        raise RequestError(f"--ckpt_path {asked}: no such file\n`--ckpt_path auto` finds the newest by itself")
    continues = path.resolve().parent.parent
    return (continues if continues.parent == root.resolve() else None), str(path)


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


def stage_of(path: Path) -> str:
    """Name of the stage in a checkpoint, or an empty string for one of another kind."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return str(content.get(METADATA_KEY, {}).get("stage", "")) if isinstance(content, dict) else ""
