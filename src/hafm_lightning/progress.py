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

_SPEED_WINDOW_S = 24 * 3600.0
"""The ETA follows the speed of so long: Rich's own 30 s hold nothing where a unit takes minutes."""


class ProgressBar(Protocol):
    """What the body of ``with progress(...)`` receives."""

    def advance(self, n: float = 1, note: str = "") -> None:
        """Count ``n`` more units as done; a non-empty ``note`` is shown after the bar."""


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[ProgressBar]:
    """Show how far a piece of work has come, and how long the rest will take.

    Args:
        description: What is being done, a few words.
        total: Number of units in all; None when it is not known beforehand (no ETA then).
        unit: Name of a unit, such as ``songs`` or ``steps``.
        done: Units that an earlier run did: part of the count, but not of the speed from which the ETA comes.

    Yields:
        A :class:`ProgressBar`. It shows nothing more once the block is left, by whatever way.
    """
    if is_quiet():
        yield _SilentBar()
    elif sys.stderr.isatty():
        with _rich_columns() as display:
            task = display.add_task(description, total=total, unit=unit, note="")
            display.update(task, completed=done)  # Rich takes only the time of the first step for its speed
            yield _RichBar(display, task)
    else:
        plain = _PlainBar(description, total, unit, done, sys.stderr)
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

    def __init__(self, description: str, total: float | None, unit: str, done: float, stream: TextIO) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._stream = stream
        self._done = self._before = done
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
        line = (
            f"{self._description}: {_count(self._done, self._total)} {self._unit}".rstrip()
            + f", {format_duration(elapsed_s)} elapsed"
        )
        if self._total is not None and self._before < self._done < self._total:
            left_s = elapsed_s * (self._total - self._done) / (self._done - self._before)
            line += f", {format_duration(left_s)} left"
        print(f"{line} {self._note}".rstrip(), file=self._stream, flush=True)


def _count(done: float, total: float | None) -> str:
    """``3/8``, or ``0.25/1.5`` where units are no whole things, such as hours."""
    return f"{round(done, 2):.10g}" if total is None else f"{round(done, 2):.10g}/{round(total, 2):.10g}"


def _rich_columns() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class CountColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_count(task.completed, task.total))

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        CountColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        speed_estimate_period=_SPEED_WINDOW_S,
    )
