"""Work that dies, finds the disk full, or is done twice at once, and is then repeated: the result must be the same.

A moment is a file operation of a work (Python's audit events: opening, making, renaming, removing), counted, or a
share of its processor seconds. The death is a SIGKILL to all processes of the work. The disk is full in two ways, both
without a mount, which needs root: ``open`` gives files whose writes fail with ENOSPC once a number of bytes is written
in all, and RLIMIT_FSIZE lets no file grow beyond a size, which also meets libraries that write by themselves
(libsndfile, SQLite, torch's own writer).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import Bench
from children import Ending, start, wait
from oracle import broken_rules, silently_wrong
from tries import Try
from works import WORKS, Work, run_digest

FILE_EVENTS = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod"}
)
KILLED = ("fit", "resume", "prepare", "evaluate", "generate", "listen build", "export")
"""Works that are killed, or find the disk full, at random moments."""
RESUMED_WITH: dict[str, tuple[str, ...]] = {"fit": ("--ckpt_path", "auto")}
"""What is added to the command after its death; other works are simply repeated."""
COUNT_FILE = "events.count"
STREAM_BYTES = 1 << 14
"""What stdout and stderr may hold whatever the limit of files is: they are files, too."""


def counting(base: Path, kill_at: int | None) -> None:
    """In a child: count the file operations on the working folder; die before number ``kill_at``."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in FILE_EVENTS or not _is_inside(arguments):
            return
        count += 1
        if count == kill_at:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    sys.addaudithook(hook)
    if kill_at is None:
        import atexit

        atexit.register(lambda: (base / COUNT_FILE).write_text(str(count)))


def _is_inside(arguments: tuple[Any, ...]) -> bool:
    path = arguments[0] if arguments else None
    if not isinstance(path, str | bytes):
        return False
    name = os.fsdecode(path)
    return not name.startswith(("/proc", "/dev", "/sys", sys.prefix, sys.base_prefix)) and not name.endswith(".pyc")


def do_kill(work_name: str, fraction: float, by_event: bool, bench: Bench) -> list[str]:
    """Kill a work at a moment, perhaps again at the same one, then let it finish."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    if by_event:
        first = bench.run(work, partial(counting, bench.streams_next(), None))
        if first.code != 0:
            return [f"the undisturbed run ended with {first.code}"]
        total = int((bench.base / f"streams-{bench.runs}" / COUNT_FILE).read_text())
        bench.start_over(work)
        ending = bench.run(work, partial(counting, bench.base, 1 + int(fraction * total)))
    else:
        ending = bench.run(work, kill_at_cpu_s=max(fraction * bench.cpu_seconds[work_name], 0.02))
    if ending.code not in (0, -signal.SIGKILL):
        return [f"ended with {ending.code} before it was killed", *broken_rules(ending)]
    return finished(work, bench)


def finished(work: Work, bench: Bench) -> list[str]:
    """Repeat a work that was interrupted: it must end well, with the result of an undisturbed one."""
    extra = RESUMED_WITH.get(work.name, ())
    ending = bench.run(work, extra=extra)
    if extra and ending.code == 2 and "no " in ending.err:  # it died before there was anything to resume
        ending = bench.run(work)
    if ending.code != 0:
        return [f"could not be finished: exit code {ending.code}", *broken_rules(ending)]
    if work.result(bench.inside) != bench.expected[work.name]:
        return ["finished with another result than an undisturbed run"]
    return []


class FullFile(io.FileIO):
    """A file on a disk on which ``left[0]`` bytes are free."""

    def __init__(self, path: Any, mode: str, left: list[int]) -> None:
        super().__init__(path, mode)
        self._left = left

    def write(self, content: Any) -> int:  # type: ignore[override]
        size = memoryview(content).nbytes
        if size > self._left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        self._left[0] -= size
        return super().write(content)


def fill_disk(free_bytes: int) -> None:
    """In a child: from now on files of the working folder share ``free_bytes``, then ENOSPC."""
    left, here, real = [free_bytes], str(Path.cwd()), io.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        writes = set(mode) & set("wax+")
        path = str(Path(os.fsdecode(file)).absolute()) if isinstance(file, str | bytes | os.PathLike) else ""
        if not writes or not path.startswith(here):
            return real(file, mode, buffering, *rest, **options)
        raw = FullFile(file, mode.replace("b", "").replace("t", ""), left)
        if "b" in mode and buffering == 0:
            return raw
        both = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return both
        names = ("encoding", "errors", "newline")
        text = dict(zip(names, rest, strict=False)) | {key: options[key] for key in names if key in options}
        return io.TextIOWrapper(both, line_buffering=buffering == 1, **text)

    io.open = builtins.open = opened  # type: ignore[assignment]


def limit_files(largest_bytes: int) -> None:
    """In a child: no file may grow beyond a size (the kernel's own limit; Python ignores its signal)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(largest_bytes, STREAM_BYTES),) * 2)


def do_full_disk(work_name: str, fraction: float, by_kernel: bool, bench: Bench) -> list[str]:
    """Let a work find the disk full; it says so; given room, it finishes."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    undisturbed = bench.run(work)
    sizes = [path.stat().st_size for name in work.leaves or work.reads for path in _files(bench.inside / name)]
    if undisturbed.code != 0 or not sizes:
        return [f"the undisturbed run ended with {undisturbed.code}"]
    bench.start_over(work)
    if by_kernel:
        before: Callable[[], None] = partial(limit_files, max(1, int(fraction * max(sizes))))
    else:
        before = partial(fill_disk, int(fraction * sum(sizes)))
    ending = bench.run(work, before)
    found = broken_rules(ending) + bench.outside()
    if found:
        return found
    return finished(work, bench) if ending.code else silently_wrong(
        ending, work.result(bench.inside), bench.expected[work.name], ()
    )  # fmt: skip


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


TWICE = ("fit", "prepare", "generate", "evaluate", "export", "listen build", "resume")


def do_twice(work_name: str, count: int, bench: Bench) -> list[str]:
    """Start a work several times at once in one folder: one at least succeeds, and nothing is mixed."""
    work = WORKS[work_name]
    bench.lay_out(work.reads)
    children = [start(work.command, bench.inside, bench.streams(), bench.bounds) for _ in range(count)]
    endings: list[Ending] = [wait(child, replace(bench.bounds, seconds=2 * bench.bounds.seconds)) for child in children]
    found = [rule for ending in endings for rule in broken_rules(ending)] + bench.outside()
    done = sum(ending.code == 0 for ending in endings)
    if not done:
        found.append(f"none of {count} succeeded")
    if found:
        return found
    if work_name == "fit":
        runs = sorted((bench.inside / "logs").glob("run-*"))
        digests = {run_digest("logs", bench.inside, path.name) for path in runs}
        if len(runs) != done or digests != {bench.expected["fit"]}:
            return [f"{done} fits succeeded, {len(runs)} run folders, {len(digests)} different results"]
        return []
    result = work.result(bench.inside)
    return [] if result == bench.expected[work_name] else ["another result than one alone gives"]


def moment_tries(seed: int, each: int) -> Iterator[Try]:
    """Kills and full disks at ``each`` moments of every work, half of either way; and several at once."""
    generator = random.Random(f"{seed} moments")
    for name in KILLED:
        for number in range(each):
            fraction, by_event = round(generator.random(), 4), number % 2 == 0
            way = "of its file operations" if by_event else "of its processor seconds"
            yield Try("kill -9", f"{name}, after {fraction} {way}", (name,), partial(do_kill, name, fraction, by_event))
    for name in KILLED:
        for number in range(each):
            fraction, by_kernel = round(generator.random(), 4), number % 2 == 1
            way = "of the largest file may be written" if by_kernel else "of the bytes fit on the disk"
            do = partial(do_full_disk, name, fraction, by_kernel)
            yield Try("disk full", f"{name}, {fraction} {way}", (name,), do)
    for name in TWICE:
        for count in (2, 3):
            yield Try("several at once", f"{name}, {count} times", (name,), partial(do_twice, name, count))
