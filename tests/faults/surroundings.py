"""Odd machines and users: what a command meets in containers, in cron, on full terminals, on other people's disks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import Bench
from children import start, wait
from moments import finished
from oracle import broken_rules, silently_wrong
from tries import Try
from works import WORKS

NOBODY = 54_321
"""A user without an entry in /etc/passwd."""
BROKEN_PIPE = 141
BOUND_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@dataclass(frozen=True)
class Surroundings:
    """How a machine differs. ``succeeds``: the work must be done, with the usual result."""

    name: str
    environment: Mapping[str, str | None] = field(default_factory=dict)
    before: Callable[[], None] | None = None
    succeeds: bool = True
    as_nobody: bool = False


def _become_nobody() -> None:
    os.umask(0)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.umask(0o022)


def _can_be_nobody() -> bool:
    """Whether this process can become another user who can still read Python; elsewhere such tries are left out."""
    folders = Path(os.__file__).resolve().parents
    return os.getuid() == 0 and all(folder.stat().st_mode & 0o005 == 0o005 for folder in folders)


def _deleted_folder() -> None:
    shutil.rmtree(Path.cwd())


def _ascii_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.reconfigure(encoding="ascii", errors="strict" if name == "stdout" else "backslashreplace")


def _stream_to(number: int, path: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    os.dup2(handle, number)


def _broken_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _closed(number: int) -> None:
    os.close(number)
    setattr(sys, "stdout" if number == 1 else "stderr", None)  # what Python does at its start


def _files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


ODD: tuple[Surroundings, ...] = (
    Surroundings("no HOME", {"HOME": None}),
    Surroundings("HOME is a file", {"HOME": os.devnull}),
    Surroundings("HOME is missing", {"HOME": "/nonexistent/home"}),
    Surroundings("LANG=C", {"LANG": "C", "LC_ALL": "C"}, _ascii_streams),
    Surroundings("a strange LANG", {"LANG": "xx_YY.nonsense"}),
    Surroundings("no PATH", {"PATH": None}),
    Surroundings("TMPDIR is missing", {"TMPDIR": "/nonexistent/tmp"}),
    Surroundings("a stale LOCAL_RANK", {"LOCAL_RANK": "3"}, succeeds=False),
    Surroundings("a stale RANK and WORLD_SIZE", {"RANK": "2", "WORLD_SIZE": "4"}, succeeds=False),
    Surroundings("SLURM's variables", {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}),
    Surroundings("HAFM_LIMITS is nonsense", {"HAFM_LIMITS": "nonsense"}, succeeds=False),
    Surroundings("OMP_NUM_THREADS is nonsense", {"OMP_NUM_THREADS": "many"}),
    Surroundings("64 open files", before=partial(_files, 64)),
    Surroundings("umask 077", before=lambda: os.umask(0o077) and None),
    Surroundings("a closed stdout", before=partial(_closed, 1), succeeds=False),
    Surroundings("a closed stderr", before=partial(_closed, 2)),
    Surroundings("a full stdout", before=partial(_stream_to, 1, "/dev/full"), succeeds=False),
    Surroundings("a full stderr", before=partial(_stream_to, 2, "/dev/full"), succeeds=False),
    Surroundings("a broken pipe as stdout", before=_broken_pipe, succeeds=False),
    Surroundings("a deleted folder", before=_deleted_folder, succeeds=False),
    Surroundings("a user without a name", {"HOME": None, "USER": None}, as_nobody=True),
)
IN_ODD = ("fit", "prepare", "generate", "evaluate", "listen report", "export")
PROTECTED = ("the working folder", "what it reads")
STOPPED = ("fit", "prepare", "generate", "evaluate")
FRACTIONS = (0.2, 0.6, 0.9)
"""Moments of signals, as shares of the processor seconds that a work takes."""


def do_odd(work_name: str, odd: Surroundings, bench: Bench) -> list[str]:
    """Do a work in odd surroundings."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    before = odd.before
    if odd.as_nobody:
        _open_to_all(bench)
        before = _become_nobody
    ending = bench.run(work, before, dict(odd.environment))
    silent = "closed stderr" in odd.name or "full stderr" in odd.name
    broken = broken_rules(ending, signals=(BROKEN_PIPE,) if "pipe" in odd.name else ())
    found = [rule for rule in broken if not (silent and "says why" in rule)]
    if odd.name != "a deleted folder":
        found += bench.outside()
        if ending.code == 0 and not found:
            found = silently_wrong(ending, work.result(bench.inside), bench.expected[work.name], ())
    if odd.succeeds and ending.code != 0:
        found.append(f"exit code {ending.code}")
    return found


def _open_to_all(bench: Bench) -> None:
    for path in (*reversed(bench.inside.parents), bench.inside, *bench.inside.rglob("*")):
        if str(path).startswith(str(bench.base.parent)) and path.is_dir():
            path.chmod(0o777)
    streams = bench.streams_next()
    streams.mkdir(parents=True, exist_ok=True)
    streams.chmod(0o777)


def do_protected(work_name: str, what: str, bench: Bench) -> list[str]:
    """A folder that another user may not write, or files that he may not read: one wrong request."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    _open_to_all(bench)
    if what == PROTECTED[0]:
        bench.inside.chmod(0o555)
    else:
        for name in work.reads:
            path = bench.inside / name
            for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
                file.chmod(0o000)
    ending = bench.run(work, _become_nobody, {"HOME": None})
    found = broken_rules(ending) + bench.outside()
    return [*found, "exit code 0"] if ending.code == 0 else found


def do_signal(work_name: str, signal_name: str, fraction: float, bench: Bench) -> list[str]:
    """Send a signal at a moment: the signal's exit code, nothing lost, and the repeated work gives the same."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    child = start(work.command, bench.inside, bench.streams(), bench.bounds)
    until = time.monotonic() + max(fraction * bench.cpu_seconds[work_name], 0.05)
    while time.monotonic() < until:
        time.sleep(0.01)
    try:
        os.kill(child.pid, signal.Signals[signal_name])
    except ProcessLookupError:
        return []
    ending = wait(child, bench.bounds)
    expected = BOUND_SIGNALS[signal_name]
    by_default = -signal.Signals[signal_name]  # before the command has set a handler
    found = broken_rules(ending, signals=(expected, by_default)) + bench.outside()
    return found or ([] if ending.code == 0 else finished(work, bench))


def surroundings_tries() -> Iterator[Try]:
    """Every surroundings with every work."""
    for odd in ODD:
        for name in IN_ODD if _can_be_nobody() or not odd.as_nobody else ():
            yield Try("odd surroundings", f"{odd.name}, {name}", (name,), partial(do_odd, name, odd))
    for what in PROTECTED if _can_be_nobody() else ():
        for name in IN_ODD:
            yield Try("no permission", f"{what}, {name}", (name,), partial(do_protected, name, what))
    for signal_name in BOUND_SIGNALS:
        for name in STOPPED:
            for fraction in FRACTIONS:
                do = partial(do_signal, name, signal_name, fraction)
                yield Try("signals", f"{signal_name} after {fraction} of the time, {name}", (name,), do)
