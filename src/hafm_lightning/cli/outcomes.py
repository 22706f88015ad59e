"""How a command ends: every exception, signal and stream failure becomes an exit code and a few lines on stderr.

* 0: done;
* 1: the work failed; one line names the error (an error of the operating system with its path);
* 2: the request was wrong (:class:`~hafm_lightning.errors.RequestError`): at most five lines that say what, where and
  what to do;
* 128 + N: ended by signal N: 129 SIGHUP, 130 Ctrl-C, 141 a reader of stdout that has gone, 143 SIGTERM. Training saves
  a checkpoint first.

Choices:

* A traceback is shown with ``--debug`` alone. The lines of the error follow it, so that logs end with the reason.
* SIGTERM and SIGHUP become an exception in the main thread, so that half-written files are removed. `fit` and its
  siblings handle signals themselves, since they save a checkpoint.
* A closed standard stream is replaced by the null device before anything is opened: otherwise the next file would get
  its number, and warnings of compiled libraries would be written into that file.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from hafm_lightning.audio import SoundWarning
from hafm_lightning.errors import RequestError

DONE, FAILED, WRONG_REQUEST = 0, 1, 2
HANGUP, INTERRUPTED, BROKEN_PIPE, TERMINATED = 129, 130, 141, 143
ERROR_LINES = 5
"""A wrong request is answered in at most this many lines."""
LINE_LENGTH = 400
"""Longer lines are cut: a value of megabytes must not fill the terminal."""
ADVICE = "--debug shows where"


class Stopped(BaseException):
    """A signal asked this process to end. Like KeyboardInterrupt, it is no Exception, so that no work swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def exit_code(run: Callable[[], int], debug: bool = False) -> int:
    """Run a command; the exit code, after the reason for a failure has been printed."""
    try:
        code = run()
        _flush()
        return code
    except SystemExit as stop:  # argparse's own exits; SIGTERM in the middle of Lightning's loops
        if type(stop).__name__ == "SIGTERMException":
            return stop.code if isinstance(stop.code, int) and stop.code else TERMINATED
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else FAILED
    except BaseException as error:  # noqa: BLE001 - the end of every command
        if debug:
            _to_stderr("".join(traceback.format_exception(error)))
        code, lines = outcome(error)
        _to_stderr("".join(f"{line}\n" for line in lines))
        return code
    finally:
        _give_up_broken_stdout()


def outcome(error: BaseException) -> tuple[int, list[str]]:
    """Exit code of an exception, and the lines that explain it."""
    if isinstance(error, RequestError):
        lines = [line.rstrip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        if rank != "0":  # the first of several processes says the rest, if there is one
            return WRONG_REQUEST, [readable(f"error (process {rank}): {lines[0]}")]
        return WRONG_REQUEST, [readable(line) for line in [f"error: {lines[0]}", *lines[1:ERROR_LINES]]]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ["interrupted"]
    if isinstance(error, Stopped):
        return 128 + error.signum, [f"stopped by {signal.Signals(error.signum).name}"]
    if isinstance(error, BrokenPipeError) and _stdout_is_broken():
        return BROKEN_PIPE, []
    return FAILED, [readable(f"failed: {_reason(error)}")]


def _reason(error: BaseException) -> str:
    """What happened, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        where = " -> ".join(names) or ("standard output" if _stdout_refuses(error.errno) else "the operating system")
        return f"{where}: {error.strerror or os.strerror(error.errno)}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({text or 'MemoryError'}); close other programs, or ask for less at a time"
    return f"{type(error).__name__}: {text} ({ADVICE})" if text else f"{type(error).__name__} ({ADVICE})"


def readable(text: str) -> str:
    """A line that every terminal can show: names that are not text under this locale are decoded as UTF-8."""
    with suppress(UnicodeError):
        text = os.fsencode(text).decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else " " for char in text.encode(errors="replace").decode())
    return text if len(text) <= LINE_LENGTH else f"{text[: LINE_LENGTH - 4]} ..."


# --- streams ------------------------------------------------------------------------------------------------------


def open_standard_streams() -> None:
    """Replace closed standard streams by the null device."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process


def _flush() -> None:
    """Write what stdout still holds: a full disk must not end in exit code 0."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), "standard output") from error


def _stdout_is_broken() -> bool:
    """Whether the reader of stdout has gone; what could not be written is still waiting."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _stdout_refuses(number: int) -> bool:
    """Whether stdout gives the same error again: where it is not buffered, nothing is left to flush."""
    if number not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
        return False
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as error:
        return error.errno == number
    except ValueError:
        return False
    return False


def _give_up_broken_stdout() -> None:
    """Keep the interpreter from flushing a stream at exit that cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            sys.stdout.flush()


def _to_stderr(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads the reason; the exit code still says it
        sys.stderr.write(text)
        sys.stderr.flush()


@contextmanager
def warnings_of_sound() -> Iterator[None]:
    """Within the block, each warning about a sound file is one line, without the place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", SoundWarning)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, SoundWarning):
                _to_stderr(readable(f"warning: {message}") + "\n")
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


# --- signals ------------------------------------------------------------------------------------------------------


@contextmanager
def signals_as_exceptions(enabled: bool = True) -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise :class:`Stopped`, unless they are ignored or handled already."""
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        for number in mine:
            signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise Stopped(signum)

    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
