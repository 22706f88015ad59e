"""The progress bar of all commands, on stderr, so that stdout stays free for results.

* On a terminal: a Rich bar with count, elapsed time and remaining time.
* In a file or a pipe: one plain line every :data:`PLAIN_INTERVAL_S` seconds and one at the end.
* Nothing if the environment variable ``HAFM_QUIET`` is set, except to an empty string or ``0``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["PLAIN_INTERVAL_S", "ProgressBar", "format_duration", "progress"]

PLAIN_INTERVAL_S = 10.0
"""Seconds between two plain lines."""


class ProgressBar(Protocol):
    """Counts finished units."""

    def advance(self, n: float = 1, note: str = "") -> None:
        """Count ``n`` more units; a non-empty ``note`` appears after the bar."""


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[ProgressBar]:
    """Show a bar while the block runs.

    ``total``: number of units in all; None if it is unknown (no ETA then). ``unit``: their name, such as ``songs``.
    ``done``: units that an earlier run did: part of the count, but not of the speed from which the ETA comes.
    """
    quiet = os.environ.get("HAFM_QUIET", "") not in ("", "0")
    if quiet or sys.stderr.isatty():
        with _rich_columns(quiet) as display:
            task = display.add_task(description, total=total, unit=unit, note="")
            display.update(task, completed=done)  # Rich takes only the time of the first step for its speed
            yield _RichBar(display, task)
    else:
        plain = _PlainBar(description, total, unit, done, sys.stderr)
        try:
            yield plain
        finally:
            plain.write(time.monotonic())


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss``, or ``h:mm:ss`` from an hour on.

    >>> format_duration(75), format_duration(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class _RichBar:
    display: Progress
    task: TaskID

    def advance(self, n: float = 1, note: str = "") -> None:
        if note:
            self.display.update(self.task, advance=n, note=note)
        else:
            self.display.advance(self.task, n)


class _PlainBar:
    """Writes a line every :data:`PLAIN_INTERVAL_S` seconds, and one when the work ends."""

    def __init__(self, description: str, total: float | None, unit: str, done: float, stream: TextIO) -> None:
        self._description, self._total, self._unit, self._stream = description, total, unit, stream
        self._done = self._before = done
        self._note = ""
        self._began = self._last_line = time.monotonic()

    def advance(self, n: float = 1, note: str = "") -> None:
        self._done += n
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = now
            self.write(now)

    def write(self, now: float) -> None:
        elapsed_s = now - self._began
        line = f"{self._description}: {_count(self._done, self._total)} {self._unit}".rstrip()
        line += f", {format_duration(elapsed_s)} elapsed"
        if self._total is not None and self._before < self._done < self._total:
            left_s = elapsed_s * (self._total - self._done) / (self._done - self._before)
            line += f", {format_duration(left_s)} left"
        print(f"{line} {self._note}".rstrip(), file=self._stream, flush=True)


def _count(done: float, total: float | None) -> str:
    """``3/8``, or ``0.25/1.5`` for units such as hours."""
    return f"{round(done, 2):.10g}" if total is None else f"{round(done, 2):.10g}/{round(total, 2):.10g}"


def _rich_columns(quiet: bool = False) -> Progress:
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class CountColumn(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            return Text(_count(task.completed, task.total))

    return rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        CountColumn(),
        rich.TextColumn("{task.fields[unit]}"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("elapsed,"),  # without a word of its own, "left" belongs to the time before it
        rich.TimeRemainingColumn(),
        rich.TextColumn("left"),
        rich.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True, quiet=quiet),
        speed_estimate_period=24 * 3600.0,  # Rich's default of 30 s gives no ETA if a unit takes minutes
        disable=quiet,
    )
