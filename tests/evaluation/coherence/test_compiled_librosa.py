"""librosa's compiled parts are kept by one process at a time: a new environment's first two processes must not meet."""

import os
import subprocess
import sys

import pytest

CODE = """
import numpy as np
from hafm_lightning.evaluation.coherence.rhythm import RhythmTrack
clicks = np.zeros(3 * 22050, np.float32)
clicks[::11025] = 1
print(len(RhythmTrack(clicks, 22050).onsets()) > 2)
"""


@pytest.mark.slow
def test_processes_that_compile_at_once_leave_parts_that_belong_together(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True)

    for together in (2, 1):  # the second time, what the first two kept is loaded
        for process in [start() for _ in range(together)]:
            assert process.communicate(timeout=300)[0].strip() == "True"
            assert process.returncode == 0
