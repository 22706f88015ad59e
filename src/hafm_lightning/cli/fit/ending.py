"""What `fit` says at its end: where the run is, its best checkpoint with the score, and the command to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hafm_lightning.cli.fit.runs import BEST, CHECKPOINTS, checkpoints, newest_run
from hafm_lightning.cli.parser import PROGRAM

ROLES = ("semantic", "coarse", "fine")


def ending(run: Path, config: Path | None, role: str | None, monitor: str | None, score: float | None) -> list[str]:
    """The last lines of a fit.

    Args:
        run: Its run folder.
        config: Its first configuration file, if any.
        role: Place of its stage in the chain; None for a module of another kind.
        monitor: Metric of the best checkpoint.
        score: Its best value; None if no validation was reached.
    """
    lines = [f"run folder:      {run}"]
    saved = checkpoints(run)
    best = run / CHECKPOINTS / BEST
    if best.is_file():
        lines.append(f"best checkpoint: {best}" + (f" ({monitor} {score:.4g})" if score is not None else ""))
    elif saved:
        lines.append(f"last checkpoint: {saved[0]} (no validation has chosen a best one)")
    return [*lines, f"next:            {next_command(run, config, role)}"]


def next_command(run: Path, config: Path | None, role: str | None) -> str:
    """The stage that is still missing, or what all stages can do together; the run's curves where neither is known.

    The stages of a model are known by the names of their folders of runs: ``logs/coarse`` is beside ``logs/semantic``.
    """
    root = run.parent
    if role in ROLES and role in root.name:
        roots = {name: root.with_name(root.name.replace(role, name)) for name in ROLES}
        missing = [name for name, folder in roots.items() if not trained(folder)]
        if not missing:
            named = [word for name, folder in roots.items() for word in (f"--{name}", str(folder))]
            return line(["generate", "--vocal", "VOCAL.wav", "--out", "out", *named])
        for name in missing:
            beside = config.with_name(config.name.replace(role, name)) if config is not None else None
            if beside is not None and beside != config and beside.is_file():
                return line(["fit", "--config", str(beside)])
    return line(["curves", str(run)])


def trained(root: Path) -> bool:
    """Whether the newest run in a folder of runs has a checkpoint."""
    newest = newest_run(root)
    return newest is not None and bool(checkpoints(newest))


def line(words: Sequence[str]) -> str:
    """A command to type."""
    return f"{PROGRAM} {shlex.join(words)}"
