"""Settings and tokenizers for tests of the whole preparation: clips of 2 s, real offline tokenizers."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny_corpora import vocal_and_band

from hafm_lightning.configuration.settings import build
from hafm_lightning.preparation.pipeline import PreparationConfig
from hafm_lightning.tokenizers import save_tokenizers
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer


@functools.cache
def tiny_tokenizers() -> Path:
    """Folder of offline tokenizers trained on twenty seconds; made once a session."""
    folder = Path(tempfile.mkdtemp(prefix="hafm-test-tokenizers-"))
    vocal, band = vocal_and_band(20.0, seed=1000)
    fine = np.repeat(band, 3)[::2]  # 16 kHz -> 24 kHz, well enough to train on
    save_tokenizers(
        OfflineSemanticTokenizer.train([vocal, band], max_frames=1500),
        OfflineAcousticTokenizer.train([fine], max_frames=1400),
        folder,
    )
    return folder


def tiny_values(root: Path, corpora: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Values of a configuration, as YAML would give them."""
    values: dict[str, Any] = {
        "root": str(root),
        "corpora": corpora,
        "clips": {"duration_s": 2.0, "hop_s": 2.0, "tail_s": 0.4},
        "filters": {"vocal_activity_min": 0.1, "loudness_range_max_lu": None},
        "duplicates": {"enabled": False},
        "split": {"validation_share": 0.25},
        "tokenizers": {"folder": str(tiny_tokenizers())},
        "clips_per_shard": 6,
        "batch_size": 4,
        "device": "cpu",
        "engine": {"workers": 1},
        "report": {"examples": 0},
    }
    return values | changes


def tiny_config(root: Path, corpora: list[dict[str, Any]], **changes: Any) -> PreparationConfig:
    """The configuration of :func:`tiny_values`."""
    return build(PreparationConfig, tiny_values(root, corpora, **changes))


def shard_bytes(root: Path) -> dict[str, str]:
    """Relative name -> digest of every shard and manifest below ``root``."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for split in ("train", "validation", "test")
        for path in sorted((root / split).glob("*"))
    }


def command(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``python -m hafm_lightning prepare ...`` in another process."""
    environment = os.environ | {"HAFM_QUIET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hafm_lightning", "prepare", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def yaml_file(path: Path, values: dict[str, Any]) -> Path:
    """Write a configuration."""
    path.write_text(yaml.safe_dump(values))
    return path
