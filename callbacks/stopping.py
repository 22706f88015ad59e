"""Signals that stop a run: SIGTERM sets a flag that the training loop reads between two optimizer steps.

Lightning ends a terminated run with exit code 0 and without a checkpoint, and its SLURM handler saves in the middle of
the interrupted work. Here :class:`~.checkpoints.Checkpoints` saves at the next step on all processes, and leaves with
exit code 143.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from lightning.pytorch.utilities import rank_zero_info


class StopSignals:
    """Catches SIGTERM, and in a SLURM job SIGUSR1 too, which asks for the job to be queued again.

    ``#SBATCH --signal=SIGUSR1@120`` sends the latter two minutes before the time is up.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Catch the signals; nothing happens outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        wanted = [signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
            wanted.append(signal.SIGUSR1)
        for number in wanted:
            self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Install the former handlers again."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    @property
    def asks_to_requeue(self) -> bool:
        """Whether the signal was SLURM's warning rather than SIGTERM."""
        return self.received is not None and self.received != signal.SIGTERM


def requeue_slurm_job() -> None:
    """Queue this SLURM job again, as it was submitted."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        rank_zero_info(f"could not queue job {job} again: {error}")
        return
    rank_zero_info(f"queued job {job} again" if not done.returncode else f"scontrol: {done.stderr.strip()}")
