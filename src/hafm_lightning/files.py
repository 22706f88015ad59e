"""Files and folders that are whole or absent: atomic writes, content hashes and names that any file system gave us.

Every file of the preparation appears under its final name by :func:`write_atomic` only: bytes go to a temporary file in
the same folder, are flushed to the disk, and take the name in one step. A crash, ``kill -9`` or a full disk therefore
leaves the old file or none, never a part of one. :func:`folder_draft` does the same for a folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError

TEMPORARY_PREFIX = ".writing-"
"""Names of unfinished files start so; whatever carries it after a crash may be deleted."""
RENAME_ATTEMPTS = 20
"""Attempts to rename a finished folder while other processes write to the same name."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds all of it or is left as it was.

    Raises:
        OSError: The disk is full or the folder is not writable; no part of the content stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut (nothing to do where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows has no folder handles
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_draft(target: Path, is_complete: Callable[[], bool]) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its name when the block ends; an error in the block deletes it.

    Several processes may write to one name: a whole folder of one of them is there at the end.

    Args:
        target: The folder to write or replace; parents are made.
        is_complete: Called before each attempt to rename. True if ``target`` already holds the same content, so that
            the draft is dropped; raises to protect what is there.

    Raises:
        RequestError: The parent of ``target`` cannot be written.
        OSError: The disk is full; what was there before is left.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise RequestError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        with suppress(OSError):  # some file systems have no permissions to set
            draft.chmod(0o755)
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        _rename_draft(draft, target, is_complete)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _rename_draft(draft: Path, target: Path, is_complete: Callable[[], bool]) -> None:
    """Rename ``draft`` to ``target``, again if another process takes the name in between."""
    for attempt in range(RENAME_ATTEMPTS):
        if is_complete():
            return
        old = draft.with_name(f"{draft.name}.{attempt}.old")
        try:
            if target.exists():
                with suppress(FileNotFoundError):
                    target.rename(old)
            draft.rename(target)
            return
        except OSError as error:
            if old.exists() and not target.exists():
                old.rename(target)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == RENAME_ATTEMPTS - 1:
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def is_occupied(path: Path) -> bool:
    """Whether a file, or a folder that is not empty, is at ``path``."""
    try:
        return any(path.iterdir())
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with the same bytes for the same content."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def sha256_of(path: Path, chunk_bytes: int = 1 << 20) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def printable(name: str) -> str:
    r"""A file name as text that any encoding can hold, different for different names.

    Bytes that are not UTF-8 become ``\xff``, characters that cannot be printed ``\u000a``, a backslash ``\\``.
    """
    text = os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
