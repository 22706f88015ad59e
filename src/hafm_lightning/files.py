"""Files and folders that are complete or absent: atomic writes, content hashes, printable names.

Content is written under a temporary name in the same folder, flushed to the disk, and renamed in one step. A crash,
``kill -9`` or a full disk leaves the old content or none, never a part of the new one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError

__all__ = [
    "CACHE_VARIABLE",
    "TEMPORARY_PREFIX",
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "expanded",
    "is_occupied",
    "names_in",
    "printable",
    "remove_unfinished",
    "sha256_of",
    "sha256_of_json",
    "sync_folder",
    "write_atomic",
    "write_json",
]

TEMPORARY_PREFIX = ".writing-"
"""Names of unfinished files and folders start with this. After the process has died, they may be deleted."""

CACHE_VARIABLE = "HAFM_CACHE"
"""Environment variable with the folder of all caches."""
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EBADF)


def cache_folder() -> Path:
    """The folder of caches: ``$HAFM_CACHE``, else ``~/.cache/hafm_lightning``.

    A user without a home (containers run with any uid) has a folder of their own among the temporary files.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return expanded(named)
    try:
        return Path.home() / ".cache" / "hafm_lightning"
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"hafm_lightning-{user}"


def expanded(path: str | Path) -> Path:
    """The path with ``~`` replaced; RequestError where the user has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{path}: this user has no home folder; name the folder without `~`, or set HOME") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to write to; it is renamed to ``path`` when the block ends without an error.

    OSError if the disk is full or the folder is not writable; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(path)
    draft.touch(exist_ok=False)  # a folder that is not writable is refused before the work
    mode = draft.stat().st_mode
    try:
        yield draft
        _set_mode(draft, mode)
        _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, is_complete: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """An empty folder beside ``path`` to fill; it replaces ``path`` when the block ends without an error.

    Its parents are made. ``is_complete`` is called where ``path`` has content: True keeps it, since it is the same; an
    error protects it. RequestError if the parent of ``path`` cannot be written,
    OSError if the disk is full or ``path`` is a file; ``path`` stays.
    """
    draft = _draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        mode = _usual_mode(draft)
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                _set_mode(file, mode)
                _sync(file)
        _replace_folder(draft, path, is_complete)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(path.parent)


def _replace_folder(draft: Path, path: Path, is_complete: Callable[[], bool]) -> None:
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    # Renaming onto nothing or an empty folder succeeds for one process only; content that is there is looked at first.
    while not _renamed(draft, path):
        if is_complete():
            return
        old = _draft_of(path)
        try:
            with suppress(FileNotFoundError):
                path.rename(old)
            if _renamed(draft, path):
                return
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _renamed(draft: Path, path: Path) -> bool:
    """Rename, unless a folder with content is at ``path``."""
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _draft_of(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"


def _usual_mode(folder: Path) -> int:
    """The mode of a new file in ``folder``, which the umask decides."""
    probe = _draft_of(folder / "probe")
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mode
    finally:
        probe.unlink(missing_ok=True)


def _set_mode(path: Path, mode: int) -> None:
    """Undo the private mode that some libraries give to their files; a wish where the file system has no modes."""
    if path.stat().st_mode != mode:
        with suppress(OSError):
            path.chmod(stat.S_IMODE(mode))


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        _flush(file.fileno())


def _flush(handle: int) -> None:
    """Flush to the disk, where the file system can; a full or broken disk is an OSError."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def remove_unfinished(root: Path, older_than_s: float = 0.0) -> None:
    """Delete unfinished files and folders of killed processes below ``root`` that are older than ``older_than_s``."""
    for path in list(root.rglob(f"{TEMPORARY_PREFIX}*")):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < older_than_s:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file completely or not at all; errors as :func:`atomic_file`."""
    with atomic_file(path) as draft:
        draft.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        _flush(handle)
    finally:
        os.close(handle)


def is_occupied(path: Path) -> bool:
    """True if ``path`` is a file, or a folder that is not empty."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def names_in(path: Path) -> frozenset[str]:
    """Names in a folder, all of one moment; none if it is absent, the path's own name if ``path`` is a file.

    Another process may replace the folder meanwhile, as :func:`atomic_folder` does: then it is read again.
    """
    while True:
        try:
            before = path.stat()
            names = frozenset(os.listdir(path))  # noqa: PTH208  (one call, whatever the version of Python)
            after = path.stat()
        except FileNotFoundError:
            return frozenset()
        except NotADirectoryError:
            return frozenset((path.name,))
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return names


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with the same bytes for the same content."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def printable(name: str) -> str:
    r"""A file name as valid text, different for different names.

    Bytes that are not UTF-8 become ``\xff``, characters that cannot be printed ``\u000a``, a backslash ``\\``.
    """
    text = os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
