"""Files whose bytes were compared with their sha256 before, and which have not changed since.

Hashing the paper's 0.7 GB takes seconds, a corpus of 100 GB minutes. So the result is kept for each file with its
inode, size and times: a file that was rewritten, replaced, swapped or copied has others and is hashed again.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

from hafm_lightning import files
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of, write_json
from hafm_lightning.untrusted import read_json

FRESH_NS = 2_000_000_000
"""Files this young are not recorded: a change within one tick of the file system's clock would not be seen."""


def has_sha256(path: Path, sha256: str) -> bool:
    """True if a file has this sha256: because it had before and is unchanged, or by hashing it now.

    The record lies in the cache folder, since data may be read-only. OSError if the file cannot be read.
    """
    return was_verified(path, sha256) or _hashed(path, sha256)


def was_verified(path: Path, sha256: str) -> bool:
    """True if the file had this sha256 when it was last hashed, and has not changed since."""
    try:
        entry = read_json(_record_of(path), what="a cache", advice="delete it")
    except RequestError:
        return False
    return bool(entry == {"state": _state(path), "sha256": sha256})


def _hashed(path: Path, sha256: str) -> bool:
    before = _state(path)
    if sha256_of(path) != sha256:
        return False
    if _state(path) == before and time.time_ns() - max(before[2:]) > FRESH_NS:
        with suppress(OSError):  # a cache is a wish
            write_json(_record_of(path), {"state": before, "sha256": sha256})
    return True


def _record_of(path: Path) -> Path:
    name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogatepass")).hexdigest()
    return files.cache_folder() / "verified" / name[:2] / f"{name}.json"


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
