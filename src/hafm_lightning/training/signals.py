"""Signals that ask a fit to save and to stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SAVING = b"\nstopping: the run is saved after this step; Ctrl-C again stops it at once\n"


class StopSignals:
    """Notes SIGTERM, Ctrl-C and SIGHUP, and in a SLURM job SIGUSR1 too, which asks for the job to be queued again.

    ``#SBATCH --signal=SIGUSR1@120`` sends the latter two minutes before the time is up. Lightning's own handlers leave
    with exit code 0 and without a checkpoint, or save in the middle of the interrupted work. The default of SIGHUP (the
    terminal was closed) ends a process at once; a program that ignores it (``nohup``) goes on ignoring it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Catch the signals; nothing happens outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        wanted = [signal.SIGTERM, signal.SIGINT]
        if hasattr(signal, "SIGHUP"):
            wanted.append(signal.SIGHUP)
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
            wanted.append(signal.SIGUSR1)
        for number in wanted:
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Install the former handlers again."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received is not None:
                raise KeyboardInterrupt
            os.write(2, SAVING)  # a stream may be in the middle of a write
        self.received = number

    @property
    def asks_to_requeue(self) -> bool:
        """Whether the signal was SLURM's warning."""
        return self.received is not None and self.received == getattr(signal, "SIGUSR1", None)

    @property
    def exit_code(self) -> int:
        """128 and the signal's number; SLURM's warning, and a signal that another process got, count as SIGTERM."""
        own = self.received is not None and not self.asks_to_requeue
        return 128 + (int(self.received or 0) if own else signal.SIGTERM)
