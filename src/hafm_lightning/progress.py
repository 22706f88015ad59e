"""The one progress bar: a Rich bar with an ETA on a terminal, a plain line now and then in a log.

Every command that works for more than a few seconds wraps its loop in :func:`progress`. Output goes to stderr, so
that stdout stays free for results. What is shown depends on where stderr leads:

* a terminal: a bar with count, elapsed time and remaining time, redrawn in place;
* a file or a pipe: one plain line every :data:`PLAIN_INTERVAL_S` seconds and one at the end, so that a log stays short;
* nothing at all when the environment variable ``HAFM_QUIET`` is set to anything but an empty string or ``0``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_VARIABLE = "HAFM_QUIET"
"""Environment variable that silences every bar."""
PLAIN_INTERVAL_S = 10.0
"""Seconds between two plain lines where no terminal is attached."""


class ProgressBar(Protocol):
    """What the body of ``with progress(...)`` receives."""

    def advance(self, n: float = 1, note: str = "") -> None:
        """Count ``n`` more units as done; a non-empty ``note`` is shown after the bar."""


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "") -> Iterator[ProgressBar]:
    """Show how far a piece of work has come, and how long the rest will take.

    Args:
        description: What is being done, a few words.
        total: Number of units in all; None when it is not known beforehand (no ETA then).
        unit: Name of a unit, such as ``songs`` or ``steps``.

    Yields:
        A :class:`ProgressBar`. It shows nothing more once the block is left, by whatever way.
    """
    if is_quiet():
        yield _SilentBar()
    elif sys.stderr.isatty():
        with _rich_columns() as display:
            yield _RichBar(display, display.add_task(description, total=total, unit=unit, note=""))
    else:
        plain = _PlainBar(description, total, unit, sys.stderr)
        try:
            yield plain
        finally:
            plain.close()


def is_quiet() -> bool:
    """Whether ``HAFM_QUIET`` asks for no progress output."""
    return os.environ.get(QUIET_VARIABLE, "") not in ("", "0")


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _SilentBar:
    """Counts nothing and shows nothing."""

    def advance(self, n: float = 1, note: str = "") -> None:
        pass


class _RichBar:
    """A task of a running Rich display."""

    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display = display
        self._task = task

    def advance(self, n: float = 1, note: str = "") -> None:
        if note:
            self._display.update(self._task, advance=n, note=note)
        else:
            self._display.advance(self._task, n)


class _PlainBar:
    """Writes a line every :data:`PLAIN_INTERVAL_S` seconds, and one when the work ends."""

    def __init__(self, description: str, total: float | None, unit: str, stream: TextIO) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._stream = stream
        self._done = 0.0
        self._note = ""
        self._began = self._last_line = time.monotonic()

    def advance(self, n: float = 1, note: str = "") -> None:
        self._done += n
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            self._write(now)

    def close(self) -> None:
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        elapsed_s = now - self._began
        count = f"{self._done:g}" if self._total is None else f"{self._done:g}/{self._total:g}"
        line = f"{self._description}: {count} {self._unit}".rstrip() + f", {format_duration(elapsed_s)} elapsed"
        if self._total is not None and 0 < self._done < self._total:
            line += f", {format_duration(elapsed_s * (self._total - self._done) / self._done)} left"
        print(f"{line} {self._note}".rstrip(), file=self._stream, flush=True)


def _rich_columns() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
