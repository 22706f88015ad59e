"""Embedding rows of clips on disk, so that a second evaluation embeds nothing twice."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic

Rows = npt.NDArray[np.float32]


class RowStore:
    """Rows by segment key, in one ``.npz`` without pickles.

    Args:
        path: File; its name holds the identities of embedding and system.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Rows] = {}
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    names = json.loads(str(archive["clips"]))
                    self.rows = {name: archive[str(index)] for index, name in enumerate(names)}
            except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
                raise RequestError(f"{path} is damaged ({error}); delete it to compute it again") from error

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = io.BytesIO()
        arrays: dict[str, Any] = {str(index): rows for index, rows in enumerate(self.rows.values())}
        np.savez(content, clips=np.str_(json.dumps(list(self.rows))), **arrays)
        write_atomic(self.path, content.getvalue())
