"""Locks: one process at a time works in a folder, and messages name the one that does.

The lock is the operating system's (``filelock.FileLock``), so that it ends with its process, however that ends: a
killed run leaves nothing locked. ``<lock>.json`` beside it names the owner while the lock is held.

* Some file systems have no locks (NFS and Lustre, depending on how they are mounted). There a marker file takes the
  lock's place (``filelock.SoftFileLock``), and a warning names it. The marker of a process that has died on this host
  is taken over; one of another host has to be removed by hand.
* A lock file stays when the lock is released. It is removed with a folder that is given up, and from folders that are
  handed to others (``erase``): a process that waits for a removed file notices and begins again.
* A check whether a lock is held takes it for a moment, so that nobody is refused before :data:`GRACE_S`.
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

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from hafm_lightning.errors import RequestError
from hafm_lightning.untrusted import checked, read_json

LOCK_NAME = ".lock"
"""Name of the lock of a folder, in that folder."""
GRACE_S = 1.0
"""How long a process waits for a lock before the request is refused."""
WITHOUT_END = -1.0
"""Wait until the lock is free."""
_POLL_S = 0.05
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_warned: set[Path] = set()


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, its machine, the local time since when, and details for other processes."""

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
        self.marker = path.with_name(f"{path.name}.held")
        self._record = path.with_name(f"{path.name}.json")
        self._held: BaseFileLock | None = None
        self._since = ""

    def acquire(self, wait_s: float = GRACE_S, details: Mapping[str, str] | None = None) -> bool:
        """Take the lock and record its owner; False if another process holds it, OSError if nothing can be written."""
        self._held = self._take(wait_s, quiet=False)
        if self._held is None:
            return False
        self._record.unlink(missing_ok=True)  # of an owner that was killed
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.describe(details or {})
        return True

    def describe(self, details: Mapping[str, str]) -> None:
        """Record the owner with other details; only the owner may."""
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
        """Give the lock back; ``erase`` removes the lock file too."""
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
        """The recorded owner, which may have been killed since; None if there is no record."""
        try:
            content = read_json(self._record, what="the record of a lock", advice="remove it")
            return checked(content, Owner, self._record, "remove it")
        except RequestError:
            return None

    def is_held(self) -> bool:
        """Whether a process (this one included) holds the lock now."""
        if self._held is not None:
            return True
        if not self.path.exists() and not self.marker.exists():
            return False
        lock = self._take(0, quiet=True)
        if lock is not None:
            lock.release()
        return lock is None

    def refusal(self, what: str, instead: str) -> RequestError:
        """The error for a request that needs the lock: ``what`` is locked, and what to do ``instead``."""
        lines = [f"{what} is in use by {self.owner() or 'another process'}", instead]
        if self.marker.exists():
            lines.append(f"if that process is gone, remove {self.marker}")
        return RequestError("\n".join(lines))

    def _take(self, wait_s: float, quiet: bool) -> BaseFileLock | None:
        """The acquired lock; None if another process holds it."""
        end = time.monotonic() + 5
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._take_once(wait_s, quiet)
            except Timeout:
                return None
            except OSError as error:  # its last owner removed the file, or the folder with it
                if error.errno not in (errno.ENOENT, errno.ESTALE) or time.monotonic() > end:
                    raise

    def _take_once(self, wait_s: float, quiet: bool) -> BaseFileLock:
        """The operating system's lock, or a marker file where there are no locks."""
        lock: BaseFileLock = FileLock(
            self.path, timeout=wait_s, poll_interval=_POLL_S, thread_local=False, fallback_to_soft=False
        )
        try:
            lock.acquire()
            return lock
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                raise
            reason = os.strerror(error.errno)
        lock = SoftFileLock(self.marker, timeout=wait_s, poll_interval=_POLL_S, thread_local=False)
        lock.acquire()
        folder = self.path.parent
        if not quiet and folder not in _warned:
            _warned.add(folder)
            print(
                f"{folder}: no file locks here ({reason}); {self.marker} marks that it is in use: "
                "remove that file if this process is killed on another host",
                file=sys.stderr,
            )
        return lock


@contextlib.contextmanager
def held(path: Path, what: str, instead: str, erase: bool = False) -> Iterator[Lock]:
    """Hold a lock for the block (``erase`` removes its file); RequestError if another process holds it."""
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
    """Wait for a lock and hold it for the block; ``erase`` removes its file."""
    lock = Lock(path)
    lock.acquire(WITHOUT_END)
    try:
        yield
    finally:
        lock.release(erase)
