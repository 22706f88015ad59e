"""librosa, compiled by one process at a time.

librosa's onset and beat functions are compiled by Numba at their first use and kept on disk. Where two processes of a
new environment do that at the same moment, Numba may keep parts that do not belong together, and every later process
that loads them ends in a segmentation fault. So the first use in each process happens under a lock of the machine.
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.locks import one_at_a_time

_RATE_HZ, _HOP = 22050, 256


@lru_cache(maxsize=1)
def compiled_librosa() -> Any:
    """The module, with its onset and beat functions compiled, or loaded from what an earlier process compiled."""
    import librosa

    clicks = np.zeros(4 * _RATE_HZ, np.float32)
    for start in range(0, len(clicks), _RATE_HZ // 2):
        clicks[start : start + 200] = 1
    with one_at_a_time(_lock_path()):
        strength = librosa.onset.onset_strength(y=clicks, sr=_RATE_HZ, hop_length=_HOP)
        common: dict[str, Any] = {"onset_envelope": strength, "sr": _RATE_HZ, "hop_length": _HOP, "units": "time"}
        librosa.onset.onset_detect(**common)
        librosa.beat.beat_track(**common, trim=False)
    return librosa


def _lock_path() -> Path:
    """A file for this user's processes on this machine, by number: in a container the user may have no name."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    return Path(tempfile.gettempdir()) / f"hafm-lightning-{user}-librosa.lock"
