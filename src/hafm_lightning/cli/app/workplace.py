"""The private folder of the app: uploads and takes hold somebody's voice.

Only its owner can list it. It is removed when the app ends; folders of apps that were killed are removed when the next
one starts.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hafm_lightning.processes.locks import LOCK_NAME, Lock

PREFIX = "hafm-app-"
STARTING_S = 60.0
"""A folder without a lock belongs to an app that is starting, for as long."""
UPLOADS_VARIABLE = "GRADIO_TEMP_DIR"
"""Environment variable with the folder where gradio puts uploads; otherwise one that all users can list."""


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that only this user can enter, for uploads and takes; removed at the end of the block."""
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    lock = Lock(folder / LOCK_NAME)
    before = os.environ.get(UPLOADS_VARIABLE)
    os.environ[UPLOADS_VARIABLE] = str(folder / "uploads")
    try:
        lock.acquire()
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop(UPLOADS_VARIABLE, None)
        else:
            os.environ[UPLOADS_VARIABLE] = before


def remove_abandoned() -> None:
    """Remove this user's folders of apps that no longer live."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            starting = not (folder / LOCK_NAME).exists() and time.time() - status.st_mtime < STARTING_S
            if stat.S_ISDIR(status.st_mode) and mine and not starting and not Lock(folder / LOCK_NAME).is_held():
                shutil.rmtree(folder, ignore_errors=True)
