"""Commands in forked children: with limits, with a moment of death, with everything that they wrote.

The runner imports the package once and forks for every command, so that a try takes as long as its work. A child gets a
session of its own; a kill is a SIGKILL to all its processes. What a child needs to end as a process does (the functions
of ``atexit``, flushed streams) it gets.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError

Call = Callable[[], int]
KEPT_VARIABLES = ("PATH", "LANG", "PYTHONPATH", "OMP_NUM_THREADS", "NUMBA_CACHE_DIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "MPLBACKEND": "Agg",
    "HAFM_QUIET": "1",
}
POLL_S = 0.005
OUTPUT_BYTES = 1 << 20
"""A command that writes more than this to a stream has lost its way."""


@dataclass(frozen=True)
class Bounds:
    """What a command may take."""

    seconds: float = 120.0
    memory_bytes: int = 5 << 30  # of address space, beyond what the imported packages have


@dataclass(frozen=True)
class Ending:
    """How a command ended; ``code`` is negative for a signal, as in ``subprocess``."""

    code: int
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    timed_out: bool = False
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Child:
    """A running command."""

    pid: int
    folder: Path  # of its streams
    began: float


def as_command(call: Call) -> int:
    """What a function of the package gives where a command calls it: a wrong request is 2 and a few lines."""
    try:
        return call()
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def start(
    command: Sequence[str] | Call,
    cwd: Path,
    streams: Path,
    bounds: Bounds = Bounds(),
    environment: Mapping[str, str | None] | None = None,
    before: Callable[[], None] | None = None,
) -> Child:
    """Fork, and run a command (or a function of the package) in ``cwd``; ``before`` is called in the child."""
    streams.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _in_child(command, cwd, streams, bounds, environment or {}, before)
        except BaseException:  # noqa: BLE001  (what Python would do at the end of a process)
            traceback.print_exc()
            code = 1
        finally:
            _leave(code)
    return Child(pid, streams, time.monotonic())


def _in_child(
    command: Sequence[str] | Call,
    cwd: Path,
    streams: Path,
    bounds: Bounds,
    environment: Mapping[str, str | None],
    before: Callable[[], None] | None,
) -> int:
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    # streams of its own: those of the runner may hold text, and those of pytest lead elsewhere
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    os.environ.clear()
    os.environ.update(kept | OFFLINE | {"HOME": str(streams / "home"), "TMPDIR": str(streams / "tmp")})
    for name in ("home", "tmp"):
        (streams / name).mkdir(exist_ok=True)
        (streams / name).chmod(0o777)  # the command may become another user
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    import tempfile

    tempfile.tempdir = None  # follows TMPDIR, as in a new process
    os.chdir(cwd)
    size_kib = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_kib + bounds.memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if before is not None:
        before()
    return as_command(command) if callable(command) else main(list(command))


def _leave(code: int) -> None:
    """End as a process does, without running what belongs to the runner."""
    try:
        atexit._run_exitfuncs()
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        code = code or 120  # what Python gives where stdout cannot be flushed
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: Child, bounds: Bounds = Bounds(), kill_at_cpu_s: float | None = None) -> Ending:
    """Wait for the end; kill the child and its processes at the time limit, or after ``kill_at_cpu_s`` of computing."""
    timed_out = False
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        elapsed = time.monotonic() - child.began
        if elapsed > bounds.seconds:
            timed_out = True
            _kill(child.pid)
        elif kill_at_cpu_s is not None and cpu_seconds(child.pid) >= kill_at_cpu_s:
            _kill(child.pid)
        time.sleep(POLL_S)
    _kill(child.pid)  # processes that it left behind
    out, err = (_text(child.folder / name) for name in ("out", "err"))
    code = os.waitstatus_to_exitcode(status)
    elapsed = time.monotonic() - child.began
    return Ending(code, out, err, elapsed, usage.ru_utime + usage.ru_stime, timed_out)


def run(
    command: Sequence[str] | Call,
    cwd: Path,
    streams: Path,
    bounds: Bounds = Bounds(),
    environment: Mapping[str, str | None] | None = None,
    before: Callable[[], None] | None = None,
    kill_at_cpu_s: float | None = None,
) -> Ending:
    """Run a command to its end, or to its death."""
    return wait(start(command, cwd, streams, bounds, environment, before), bounds, kill_at_cpu_s)


def cpu_seconds(pid: int) -> float:
    """Processor seconds of a process up to now; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(OUTPUT_BYTES).decode("utf-8", "backslashreplace")
