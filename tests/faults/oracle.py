"""What every try must keep, whatever was damaged.

* The exit code is 0, 1, 2 or 128 + the number of a signal that was sent; no crash of the interpreter.
* 2 comes with at most five lines, 1 with one; no traceback.
* Nothing is written outside the working folder, and no code from a file runs.
* It ends in time, and in the memory that it was given.
* Where it says 0, the result is that of undamaged files, or a line names what differs.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from children import Ending

CANARY = "canary"
"""Hostile content makes a file of this name, beside the working folder."""
OUTSIDE = ("outside", "escaped", CANARY)
MOST_LINES = {1: 1, 2: 5}
HEADS = ("error:", "failed:")
"""The first line of an error: of a wrong request, and of work that failed."""
TRACES = ("Traceback (most recent call last)", "Fatal Python error", "Segmentation fault", "core dumped")


def error_lines(text: str) -> list[str]:
    """The lines of an error message: from the first line that begins with one of :data:`HEADS` to the end."""
    lines = [line for line in text.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(lines) if line.startswith(HEADS)), None)
    return [] if first is None else lines[first:]


def broken_rules(ending: Ending, *, signals: Collection[int] = ()) -> list[str]:
    """Rules that an ending breaks, each as a line; ``signals``: exit codes of signals that the try sends."""
    if ending.timed_out:
        return [f"still running after {ending.seconds:.0f} s"]
    found = [f"shows {trace!r}" for trace in TRACES if trace in ending.err or trace in ending.out]
    if ending.code not in (0, 1, 2, *signals):
        found.append(f"exit code {ending.code}")
    if ending.code in MOST_LINES:
        lines, most = error_lines(ending.err), MOST_LINES[ending.code]
        if not lines:
            found.append(f"exit code {ending.code} without a line that says why")
        if len(lines) > most:
            found.append(f"{len(lines)} lines of error for exit code {ending.code}, {most} at most")
    return found


def strays(base: Path, inside: str, allowed: Collection[str]) -> list[str]:
    """Files of a try's folder that are neither in the working folder nor among the ``allowed`` ones beside it."""
    found = []
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        if str(name).startswith((f"{inside}/", *(f"{folder}/" for folder in allowed))):
            continue
        if path.is_dir() and any(str(other).startswith(f"{name}/") for other in (inside, *allowed)):
            continue
        if str(name) != inside and str(name) not in allowed:
            found.append(str(name))
    return found


def silently_wrong(ending: Ending, result: str, expected: str, named: Collection[str]) -> list[str]:
    """Whether a success gave another result without a line about it that holds one of the words ``named``."""
    if ending.code != 0 or result == expected:
        return []
    if any(word in line for line in ending.err.splitlines() for word in named if word):
        return []
    return ["silently wrong: exit code 0, another result than with undamaged files, and no line says so"]
