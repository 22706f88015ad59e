"""The demo's training runs, side by side: each a ``fit`` in a process of its own, with its share of the cores.

The stages learn from true tokens and so do not wait for each other. On few cores, one thread for each of several small
models is faster than several threads for one. Each writes to a log file; one bar shows all of them.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path

from hafm_lightning.cli.fit.runs import newest_run
from hafm_lightning.errors import RequestError
from hafm_lightning.processes.locks import LOCK_NAME, Lock
from hafm_lightning.processes.pool import thread_limit
from hafm_lightning.progress import progress

POLL_S = 1.0
ORPHAN_S = 60.0
"""How long a run that lost its demo may take to save and stop."""
LOG_LINES = 15
"""Lines of a failed run's log that are shown."""


@dataclass(frozen=True)
class Fit:
    """One training run.

    Attributes:
        name: The stage.
        arguments: Command line after ``python -m hafm_lightning``.
        steps: Optimizer steps in all.
        root: Folder of its runs.
        log: File for its output.
        done: File that marks it as finished.
    """

    name: str
    arguments: tuple[str, ...]
    steps: int
    root: Path
    log: Path
    done: Path


def lanes(weights: Mapping[str, float], count: int) -> list[list[str]]:
    """Divide stages among at most ``count`` lanes of about equal weight; a lane runs its stages one after the other."""
    filled: list[list[str]] = [[] for _ in range(min(count, len(weights)))]
    for name in sorted(weights, key=lambda stage: -weights[stage]):
        min(filled, key=lambda lane: sum(weights[other] for other in lane)).append(name)
    return filled


def run_fits(queues: Sequence[Sequence[Fit]], threads: int) -> None:
    """Run all fits that are not done, each queue in order, the queues at the same time.

    Raises:
        RequestError: A configuration was refused; the message is the run's own.
        RuntimeError: A run failed; its log's last lines are shown.
    """
    waiting = [[fit for fit in queue if not fit.done.is_file()] for queue in queues]
    fits = [fit for queue in waiting for fit in queue]
    if not fits:
        return
    for fit in fits:
        print(f"$ python -m hafm_lightning {' '.join(fit.arguments)}\n  output: {fit.log}", flush=True)
    context = multiprocessing.get_context("spawn")
    running: dict[int, tuple[Fit, SpawnProcess]] = {}  # by the number of the queue
    seen = {fit.name: 0 for fit in fits}
    total = sum(fit.steps for fit in fits)
    try:
        with thread_limit(threads), progress("Training the stages", total=total, unit="steps") as bar:
            while any(waiting) or running:
                for number, queue in enumerate(waiting):
                    if queue and number not in running:
                        fit = queue.pop(0)
                        process = context.Process(target=_run, args=(fit, os.getpid()), name=f"fit-{fit.name}")
                        process.start()
                        running[number] = fit, process
                time.sleep(POLL_S)
                for number, (fit, process) in list(running.items()):
                    if process.exitcode is not None:
                        del running[number]
                        _check(fit, process.exitcode)
                    step = fit.steps if process.exitcode == 0 else logged_step(fit)
                    bar.advance(max(0, step - seen[fit.name]), ", ".join(fit.name for fit, _ in running.values()))
                    seen[fit.name] = max(step, seen[fit.name])
    finally:
        for _, process in running.values():  # an interrupted demo: each run saves a checkpoint and stops
            process.terminate()
        for _, process in running.values():
            process.join()


def logged_step(fit: Fit) -> int:
    """Optimizer steps that the newest run has logged."""
    run = newest_run(fit.root)
    if run is None or not (run / "metrics.csv").is_file():
        return 0
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
    return max(steps, default=0)


def _check(fit: Fit, code: int) -> None:
    """Mark a fit as done, or raise its error."""
    if code == 0:
        fit.done.touch()
        return
    lines = fit.log.read_text(encoding="utf-8", errors="replace").splitlines()
    if code == 2:
        errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
        raise RequestError("\n".join(lines[errors[-1] :] if errors else lines[-5:]).removeprefix("error: "))
    raise RuntimeError(
        f"the {fit.name} stage's training ended with exit code {code}; the demo continues from its newest checkpoint "
        f"when it is started again. The end of {fit.log}:\n" + "\n".join(lines[-LOG_LINES:])
    )


def _run(fit: Fit, parent: int) -> None:
    """In the child process: run the command, write its output to the log, end when the parent is gone."""
    fit.log.parent.mkdir(parents=True, exist_ok=True)
    with fit.log.open("a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        _wait_for_orphan(fit.root)
        from hafm_lightning.cli import DEBUG_FLAG, main

        sys.exit(main([*fit.arguments, DEBUG_FLAG]))  # the log holds the traceback of a failure


def _wait_for_orphan(root: Path) -> None:
    """Wait for the run of a demo that was killed, which saves its checkpoint and stops by itself."""
    run = newest_run(root)
    if run is not None:
        lock = Lock(run / LOCK_NAME)
        if lock.acquire(ORPHAN_S):
            lock.release()


def _end_with(parent: int) -> None:
    """Stop this run, with a checkpoint, when the demo that started it was killed."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
