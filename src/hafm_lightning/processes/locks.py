"""Locks: one process at a time works in a folder, and messages name the one that does.

The lock is the operating system's (``filelock.FileLock``), so that it ends with its process, however that ends: a
killed run leaves nothing locked. ``<lock>.json`` beside it names the owner while the lock is held.

Choices:

* Some file systems have no locks (NFS and Lustre, depending on how they are mounted). There a marker file takes the
  lock's place (``filelock.SoftFileLock``), and a line says so. A marker whose process has died on this host is taken
  over; one of another host has to be removed by hand, and the refusal says which file that is.
* A lock file stays where it is when it is released. It is removed with a folder that is given up, and from folders that
  are handed to others (``erase``): whoever waits for a removed file notices and begins again.
* Whoever looks whether a lock is held takes it for a moment, so that nobody is refused before :data:`GRACE_S`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from hafm_lightning.errors import RequestError

LOCK_NAME = ".lock"
"""Name of the lock of a folder, in that folder."""
GRACE_S = 1.0
"""How long a lock is asked for before the request is refused."""
WITHOUT_END = -1.0
"""A time to wait that never ends."""
_POLL_S = 0.05
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_MARKER_SUFFIX = ".held"
_told: set[Path] = set()


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: Number of the process.
        host: Name of its machine.
        since: Local time at which it took the lock.
        details: What the owner wants others to know.
    """

    pid: int
    host: str
    since: str
    details: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The owner in a message."""
        return f"process {self.pid} on {self.host} since {self.since}"


class Lock:
    """A lock that this process can hold; not shared with processes that it forks.

    Args:
        path: The lock file; its folder is made when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marker = path.with_name(path.name + _MARKER_SUFFIX)
        self._record = path.with_name(path.name + ".json")
        self._held: BaseFileLock | None = None
        self._since = self._reason = ""

    def acquire(self, wait_s: float = GRACE_S, details: Mapping[str, str] | None = None) -> bool:
        """Take the lock and write down who has it.

        Args:
            wait_s: How long to wait for it, in seconds; :data:`WITHOUT_END` waits until it is free.
            details: What others may read from the owner.

        Returns:
            Whether this process holds it now.

        Raises:
            OSError: The folder cannot be made or written.
        """
        if not self._take(wait_s, quiet=False):
            return False
        self._record.unlink(missing_ok=True)  # of an owner that was killed
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.describe(details or {})
        return True

    def describe(self, details: Mapping[str, str]) -> None:
        """Write down who holds the lock, with other details than before; only its owner may."""
        owner = Owner(os.getpid(), socket.gethostname(), self._since, dict(details))
        draft = self._record.with_name(f"{self._record.name}-{os.getpid()}")
        try:
            draft.write_text(json.dumps(asdict(owner)), encoding="utf-8")
            draft.replace(self._record)
        except OSError:
            draft.unlink(missing_ok=True)
            self.release()
            raise

    def release(self, erase: bool = False) -> None:
        """Give the lock back.

        Args:
            erase: Remove the lock file too, since its folder is given up.
        """
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            self._record.unlink(missing_ok=True)
        if erase:
            with contextlib.suppress(OSError):  # Windows removes no open file
                self.path.unlink(missing_ok=True)
        self._held.release()
        self._held = None

    def owner(self) -> Owner | None:
        """Who wrote that it holds the lock; it may have been killed since. None if nobody did."""
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
            details = {str(key): str(value) for key, value in content["details"].items()}
            return Owner(int(content["pid"]), str(content["host"]), str(content["since"]), details)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def is_held(self) -> bool:
        """Whether a process (this one included) holds the lock now."""
        if self._held is not None:
            return True
        if not self.path.exists() and not self.marker.exists():
            return False
        if not self._take(0, quiet=True):
            return True
        assert self._held is not None
        self._held.release()
        self._held = None
        return False

    def refusal(self, what: str, instead: str) -> RequestError:
        """The message for a request that needs what another process holds.

        Args:
            what: What is locked.
            instead: What to do.
        """
        lines = [f"{what} is in use by {self.owner() or 'another process'}", instead]
        if self.marker.exists():
            lines.append(f"if that process is gone, remove {self.marker}")
        return RequestError("\n".join(lines))

    def _take(self, wait_s: float, quiet: bool) -> bool:
        end = time.monotonic() + 5
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._held = self._native(wait_s) or self._soft(wait_s, quiet)
                return True
            except Timeout:
                return False
            except OSError as error:  # its last owner removed the file, or the folder with it
                if error.errno not in (errno.ENOENT, errno.ESTALE) or time.monotonic() > end:
                    raise

    def _native(self, wait_s: float) -> BaseFileLock | None:
        """The operating system's lock, or None where there are none."""
        lock = FileLock(self.path, timeout=wait_s, poll_interval=_POLL_S, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                raise
            self._reason = os.strerror(error.errno)
            return None
        return lock

    def _soft(self, wait_s: float, quiet: bool) -> BaseFileLock:
        """The marker file in place of a lock."""
        from filelock import SoftFileLock

        lock = SoftFileLock(self.marker, timeout=wait_s, poll_interval=_POLL_S, thread_local=False)
        lock.acquire()
        folder = self.path.parent
        if not quiet and folder not in _told:
            _told.add(folder)
            print(
                f"{folder}: no file locks here ({self._reason}); {self.marker} marks that it is in use: "
                "remove that file if this process is killed on another host",
                file=sys.stderr,
            )
        return lock


@contextlib.contextmanager
def held(path: Path, what: str, instead: str, erase: bool = False) -> Iterator[Lock]:
    """Hold a lock for the block, or refuse the request.

    Args:
        path: The lock file.
        what: What is locked, for the message.
        instead: What to do if another process holds it.
        erase: Remove the lock file at the end.

    Raises:
        RequestError: Another process holds it; the message names the process.
    """
    lock = Lock(path)
    try:
        taken = lock.acquire()
    except PermissionError as error:
        raise RequestError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from error
    if not taken:
        raise lock.refusal(what, instead)
    try:
        yield lock
    finally:
        lock.release(erase)


@contextlib.contextmanager
def one_at_a_time(path: Path, erase: bool = False) -> Iterator[None]:
    """Hold a lock for the block, after waiting for the processes that hold it.

    Args:
        path: The lock file.
        erase: Remove the lock file at the end.

    Raises:
        OSError: The folder cannot be made or written.
    """
    lock = Lock(path)
    lock.acquire(WITHOUT_END)
    try:
        yield
    finally:
        lock.release(erase)
