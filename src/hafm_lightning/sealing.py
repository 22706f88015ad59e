"""Archives that carry the SHA-256 of their own bytes: checkpoints (``.ckpt``) and arrays (``.npz``).

Both are zip files, whose readers (PyTorch's too) do not compare the checksums of their content. A sealed archive ends
with a zip comment ``sha256=...`` over all bytes before it: copies and uploads keep it, and every zip reader skips it.
A seal finds damage, not forgery: whoever changes a file can seal it again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO

from hafm_lightning.errors import RequestError
from hafm_lightning.untrusted import open_file

__all__ = ["check_seal", "note_without_digest", "seal"]

_END = b"PK\x05\x06"  # begins the last record of a zip file, which has 22 bytes and the comment
_END_BYTES, _LENGTH_BYTES = 22, 2
_PREFIX = b"sha256="
_COMMENT_BYTES = len(_PREFIX) + 64
_BLOCK = 1 << 20
_verified: set[tuple[int, ...]] = set()
"""Device, inode, size and times of the files that this process has compared with their seals."""
_noted: set[str] = set()


def seal(path: Path) -> None:
    """Append the digest to a zip file without a comment; ValueError if it is no such file."""
    with path.open("rb+") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - _END_BYTES, 0))
        end = file.read()
        if end[:4] != _END or end[-_LENGTH_BYTES:] != bytes(_LENGTH_BYTES):
            raise ValueError(f"{path} is no zip file without a comment")
        digest = _digest(file, size - _LENGTH_BYTES)
        file.seek(size - _LENGTH_BYTES)
        file.write(_COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little") + _PREFIX + digest.encode())


def check_seal(path: str | Path, *, what: str, advice: str) -> bool:
    """Compare an archive with its seal, or one without a seal with the checksums of its members.

    Returns:
        Whether the file has a seal. A line says so, once, where it has none.

    Raises:
        RequestError: The bytes have changed, or the file cannot be read. A file that is no zip file is left to its
            reader.
    """
    with open_file(path, what=what, advice=advice) as file:
        status = os.fstat(file.fileno())
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        try:
            sealed = _sealed_digest(file, status.st_size)
            if state in _verified:
                return sealed is not None
            if sealed is None:
                damaged = _first_damaged(file)
            else:
                damaged = "" if _digest(file, _content_bytes(status.st_size)) == sealed else "its SHA-256 differs"
        except OSError as error:
            raise RequestError(f"{path}: {what} cannot be read ({error.strerror}); {advice}") from error
    if damaged:
        raise RequestError(
            f"{path}: {what} is damaged, the bytes changed since they were written ({damaged}); {advice}"
        )
    _verified.add(state)
    if sealed is None:
        note_without_digest(path)
    return sealed is not None


def note_without_digest(path: str | Path) -> None:
    """One line, once for each file, that it is of a version without digests."""
    if str(path) not in _noted:
        _noted.add(str(path))
        print(f"{path}: carries no digest (written by an older version), so damage may stay unseen", file=sys.stderr)


def _content_bytes(size: int) -> int:
    return size - _COMMENT_BYTES - _LENGTH_BYTES


def _sealed_digest(file: IO[bytes], size: int) -> str | None:
    file.seek(max(size - _END_BYTES - _COMMENT_BYTES, 0))
    end = file.read()
    comment = end[_END_BYTES:]
    if end[:4] != _END or len(comment) != _COMMENT_BYTES or not comment.startswith(_PREFIX):
        return None
    return comment[len(_PREFIX) :].decode("ascii", "replace")


def _digest(file: IO[bytes], size: int) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def _first_damaged(file: IO[bytes]) -> str:
    """A member whose checksum is wrong, or an empty string."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            name = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        # no zip file, or one that its reader has to refuse
        return str(error)[:80] if _is_zip(file) else ""
    return "" if name is None else f"the checksum of {name!r:.60} differs"


def _is_zip(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(file)
