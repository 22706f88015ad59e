"""Run folders: every fit has its own, and ``--ckpt_path auto`` continues in the newest.

``trainer.default_root_dir`` (default ``logs/<name of the configuration>``) holds ``run-000``, ``run-001``, ...; each
holds ``config.yaml``, ``metrics.csv`` and ``checkpoints/`` with ``step-00001000.ckpt`` ... and ``best.ckpt``. A fit
that is not told to continue makes the next folder, so that nothing is overwritten. Paths are computed by every process
before any of them writes, and so they agree.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from hafm_lightning.checkpoint_format import METADATA_KEY
from hafm_lightning.errors import RequestError

RUN_NAME = re.compile(r"run-(\d+)$")
STEP_NAME = re.compile(r"step-(\d+)\.ckpt$")
CHECKPOINTS = "checkpoints"
BEST = "best.ckpt"
AUTO = "auto"
"""Value of ``--ckpt_path`` that looks for the checkpoint itself."""


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


def next_run(root: Path) -> Path:
    """Path of the run folder to make next."""
    newest = newest_run(root)
    return root / f"run-{run_number(newest) + 1 if newest else 0:03d}"


def checkpoints(run: Path) -> Iterator[Path]:
    """The run's checkpoints: by step, the newest first, then the best one."""
    folder = run / CHECKPOINTS
    steps = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := STEP_NAME.search(path.name))]
    yield from (path for _, path in sorted(steps, reverse=True))
    if (folder / BEST).is_file():
        yield folder / BEST


def why_unreadable(path: Path) -> str:
    """Why a checkpoint cannot be continued from, or an empty string; maps the weights without reading them."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with it, an older one is tried)
        return (str(error).splitlines() or [type(error).__name__])[0][:120]
    if not isinstance(content, dict) or "loops" not in content:
        return "not a training checkpoint"
    return ""


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that can be read; what is skipped is said on stderr."""
    for path in checkpoints(run):
        problem = why_unreadable(path)
        if not problem:
            return path
        print(f"skipping {path}: {problem}", file=sys.stderr)
    return None


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
