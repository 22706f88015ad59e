"""Run folders: every fit has its own, made exclusively and locked while the fit lives.

``trainer.default_root_dir`` (default ``logs/<name of the configuration>``) holds ``run-000``, ``run-001``, ...; each
holds ``config.yaml``, ``metrics.csv`` and ``checkpoints/`` with ``step-00001000.ckpt`` ... and ``best.ckpt``.

* A new folder is made by ``mkdir``, which only one process can win; the others take the next number. A run that another
  fit works in is not continued.
* In a run of several processes the first one claims the folder. The others find it by the launch that the owner's
  record names: an id that Lightning's own launcher hands on in the environment, or the variables that torchrun and
  SLURM set for all processes of a launch. That needs the file system alone, before any process group exists.
* A folder that was made for a request which is then refused is removed again.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from hafm_lightning.checkpoint_format import ADVICE
from hafm_lightning.errors import RequestError
from hafm_lightning.processes.locks import GRACE_S, LOCK_NAME, Lock
from hafm_lightning.sealing import check_seal

RUN_NAME = re.compile(r"run-(\d+)")
STEP_NAME = re.compile(r"step-(\d+)\.ckpt$")
CHECKPOINTS, BEST = "checkpoints", "best.ckpt"
AUTO = "auto"
"""Value of ``--ckpt_path`` for the newest checkpoint."""
RESTARTS = "SLURM_RESTART_COUNT"
"""Environment variable: the number of times that SLURM has queued this job again; not set the first time."""
LAUNCH_VARIABLE = "HAFM_LAUNCH"
"""Environment variable by which the processes that Lightning starts know the first one's run."""
LAUNCHERS = (
    ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"),
    ("SLURM_JOB_ID", "SLURM_STEP_ID", RESTARTS),
    ("MASTER_ADDR", "MASTER_PORT"),
)
"""Variables that together name a launch from outside; the first group whose first variable is set counts."""
REQUEUED_WAIT_S = 60.0
"""How long a job that SLURM has queued again waits for its predecessor to end."""
FIRST_WAIT_S = 300.0
"""How long the other processes wait for the first one to claim a run."""
_POLL_S = 0.2
_IN_USE = "wait for it, or start a run of its own: without --ckpt_path"


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
    check_seal(path, what="a checkpoint", advice=ADVICE)
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


def run_to_continue(root: Path, ckpt_path: str | None) -> tuple[Path | None, str | None]:
    """The run folder in which a fit continues (None for a new one), and its ``--ckpt_path``.

    Args:
        root: Folder of the runs.
        ckpt_path: None, ``auto``, or a file; a job that was queued again has ``auto`` by default.

    Raises:
        RequestError: There is no such file.
    """
    if ckpt_path is None and is_requeued():
        say("this job was queued again: --ckpt_path auto")
        ckpt_path = AUTO
    if ckpt_path is None:
        return None, None
    if ckpt_path == AUTO:
        run = newest_run(root)
        if run is None:
            say(f"--ckpt_path auto: no checkpoint under {root}, starting at step 0")
        return run, AUTO
    if not Path(ckpt_path).is_file():
        raise RequestError(f"--ckpt_path {ckpt_path}: no such file\n`--ckpt_path auto` finds the newest")
    run = Path(ckpt_path).resolve().parent.parent
    return (run if run.parent == root.resolve() else None), ckpt_path


def best_checkpoint(root: Path) -> Path:
    """The best checkpoint of the newest run under ``root``, or of the run ``root``; RequestError if there is none."""
    run = root if (root / CHECKPOINTS).is_dir() else newest_run(root)
    best = run / CHECKPOINTS / BEST if run is not None else None
    if best is not None and best.is_file():
        return best
    newest = newest_checkpoint(run) if run is not None else None
    if newest is None:
        raise RequestError(f"no checkpoint under {root}\ntrain first, or name the file with --ckpt_path")
    return newest


# --- claims -------------------------------------------------------------------------------------------------------


class RunClaim(NamedTuple):
    """The run folder that a fit may write to, and the checkpoint that it continues from, if any."""

    run: Path
    checkpoint: str | None


def outer_launch() -> str:
    """A name that all processes of a launch from outside share; empty if there was no such launch."""
    for names in LAUNCHERS:
        if names[0] in os.environ:
            return "/".join(os.environ.get(name, "") for name in names)
    return ""


@contextmanager
def claimed_run(root: Path, ckpt_path: str | None) -> Iterator[RunClaim]:
    """The run of this fit, held for the block; for the first process of a launch.

    Raises:
        RequestError: There is no such file, another fit works in that run, or the folder cannot be written.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    token = secrets.token_hex(8)
    details = {"launch": outer_launch(), "token": token}
    try:
        claim, lock, new = _claim(root, ckpt_path, details)
    except PermissionError as error:
        raise RequestError(
            f"{root}: cannot be written ({error.strerror})\nchoose another folder: --trainer.default_root_dir DIR"
        ) from error
    os.environ[LAUNCH_VARIABLE] = token
    try:
        yield claim
    finally:
        os.environ.pop(LAUNCH_VARIABLE, None)
        unused = new and claim.run.is_dir() and all(path.name.startswith(LOCK_NAME) for path in claim.run.iterdir())
        lock.release(erase=unused)
        if unused:
            with suppress(OSError):  # another fit has come into one of them
                for folder in (claim.run, *made):
                    folder.rmdir()


def _claim(root: Path, ckpt_path: str | None, details: dict[str, str]) -> tuple[RunClaim, Lock, bool]:
    """The claim, its lock, and whether the folder is a new one."""
    run, ckpt_path = run_to_continue(root, ckpt_path)
    if run is not None:
        lock = Lock(run / LOCK_NAME)
        checkpoint = _checkpoint_of(run, ckpt_path, lock, details)
        if checkpoint is not None or not checkpoints(run):
            return RunClaim(run, checkpoint), lock, False
        lock.release()  # none of its checkpoints can be read: the run stays as it is
    run, lock = _new_run(root, details | {"checkpoint": ckpt_path if ckpt_path not in (None, AUTO) else ""})
    return RunClaim(run, ckpt_path if ckpt_path != AUTO else None), lock, True


def _checkpoint_of(run: Path, ckpt_path: str | None, lock: Lock, details: dict[str, str]) -> str | None:
    """Lock a run that is to be continued, and find its checkpoint, which no other fit can replace then."""
    if not lock.acquire(REQUEUED_WAIT_S if is_requeued() else GRACE_S):
        raise lock.refusal(str(run), _IN_USE)
    try:
        checkpoint = newest_checkpoint(run) if ckpt_path == AUTO else Path(str(ckpt_path))
        if checkpoint is None:
            say(f"--ckpt_path {AUTO}: no checkpoint under {run}, starting at step 0")
        elif not checkpoint.is_file():
            raise RequestError(f"--ckpt_path {ckpt_path}: the file was removed\n`--ckpt_path auto` finds the newest")
        elif ckpt_path == AUTO:
            say(f"--ckpt_path {AUTO}: continuing from {checkpoint}")
        text = str(checkpoint or "")
        lock.describe(details | {"checkpoint": text})
    except BaseException:
        lock.release()
        raise
    return text or None


def _new_run(root: Path, details: dict[str, str]) -> tuple[Path, Lock]:
    """A run folder that this process has made, locked."""
    skip = 0
    while True:
        root.mkdir(parents=True, exist_ok=True)
        run = next_run(root, skip)
        lock = Lock(run / LOCK_NAME)
        try:
            run.mkdir()
        except FileExistsError:
            if next_run(root, skip) == run:  # no folder has this name but a file
                skip += 1
            continue
        except FileNotFoundError:  # another fit was refused, and removed the root that it had made
            continue
        if lock.acquire(0, details):
            return run, lock
        skip += 1  # `--ckpt_path auto` of another fit has found the new folder first


def joined_run(root: Path, ckpt_path: str | None, wait_s: float = FIRST_WAIT_S) -> RunClaim:
    """The run that the first process of this launch has claimed; waits for it. RequestError if no claim comes."""
    wanted, _ = run_to_continue(root, ckpt_path)
    token, launch = os.environ.get(LAUNCH_VARIABLE), outer_launch()

    def is_ours(details: Mapping[str, str]) -> bool:
        same = details.get("token") == token if token else bool(launch) and details.get("launch") == launch
        return same and "checkpoint" in details

    patience_s = (REQUEUED_WAIT_S if is_requeued() else GRACE_S) + 1
    start = refused_since = time.monotonic()
    while time.monotonic() - start < wait_s:
        for run in reversed(runs(root)):
            lock = Lock(run / LOCK_NAME)
            owner = lock.owner()
            if owner is not None and is_ours(owner.details) and lock.is_held():
                time.sleep(_POLL_S)  # the record of a killed owner is replaced within that time
                if lock.owner() == owner:
                    return RunClaim(run, owner.details["checkpoint"] or None)
        wanted_lock = Lock(wanted / LOCK_NAME) if wanted is not None else None
        if wanted_lock is None or not wanted_lock.is_held():
            refused_since = time.monotonic()
        elif time.monotonic() - refused_since > patience_s:
            raise wanted_lock.refusal(str(wanted), _IN_USE)
        time.sleep(_POLL_S)
    raise RequestError(
        f"the first process of this launch has claimed no run below {root} within {wait_s:.0f} s\n"
        "all processes must see the same folder; the output of the first one may name another reason"
    )


def claim(root: Path, ckpt_path: str | None) -> RunClaim:
    """The claim that :func:`claimed_run` would make now, without making or locking anything."""
    run, ckpt_path = run_to_continue(root, ckpt_path)
    if run is None or ckpt_path != AUTO:
        return RunClaim(run or next_run(root), ckpt_path if ckpt_path != AUTO else None)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        return RunClaim(next_run(root) if checkpoints(run) else run, None)
    return RunClaim(run, str(checkpoint))
