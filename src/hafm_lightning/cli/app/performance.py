"""One take at a time, in a thread of its own, so that the page can show its progress and stop it.

Cancel (or leaving the page) raises inside the decoding loop at the next frame.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from hafm_lightning.accompanist import Take

REFRESH_S = 0.25
"""Seconds between two updates of the progress."""
_closing = threading.Event()
_running: set[Performance] = set()


class Cancelled(Exception):
    """The user pressed Cancel."""


class Performance:
    """One take being made in a thread.

    Threads that still work when the interpreter ends abort the process, so :func:`stop_all` ends them before.

    Args:
        make: Makes the take; receives ``on_progress``, as :meth:`Accompanist.accompany` does.
    """

    def __init__(self, make: Callable[..., Take]) -> None:
        self._make = make
        self._stop = threading.Event()
        self._share = 0.0
        self._outcome: Take | Exception | None = None
        self._worker: threading.Thread | None = None

    def run(self) -> Iterator[float | Take]:
        """Shares of the work that are done, and at the end the take; closing the iterator stops the work.

        Raises:
            Cancelled: :meth:`stop` was called.
            Exception: Any error of the work.
        """
        if _closing.is_set():
            raise Cancelled
        worker = self._worker = threading.Thread(target=self._work, daemon=True)
        _running.add(self)
        worker.start()
        try:
            worker.join(REFRESH_S)
            while worker.is_alive():
                yield self._share
                worker.join(REFRESH_S)
            if isinstance(self._outcome, Exception):
                raise self._outcome
            assert self._outcome is not None, "the thread ends with a take or an error"
            yield self._outcome
        finally:
            self.stop()
            worker.join()
            _running.discard(self)

    def stop(self) -> None:
        """Stop the work at the next frame."""
        self._stop.set()

    def _report(self, share: float) -> None:
        if self._stop.is_set():
            raise Cancelled
        self._share = float(share)

    def _work(self) -> None:
        try:
            self._outcome = self._make(on_progress=self._report)
        except Exception as error:  # noqa: BLE001 - raised in the thread of the page
            self._outcome = error


def stop_all(wait_s: float) -> bool:
    """Stop all performances, and start no more; whether all threads have ended within ``wait_s`` seconds."""
    _closing.set()
    end = time.monotonic() + wait_s
    waiting = list(_running)
    for performance in waiting:
        performance.stop()
    for performance in waiting:
        if performance._worker is not None:
            performance._worker.join(max(0.0, end - time.monotonic()))
    return not any(p._worker is not None and p._worker.is_alive() for p in waiting)
