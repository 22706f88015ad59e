"""A folder with every odd file that a folder of songs may hold, and what became of each in a preparation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tiny_corpora import vocal_and_band, write_stems

from hafm_lightning.shards import ShardReader, song_of

SECONDS = 4.0  # two clips of 2 s
RATES_HZ = (8_000, 22_050, 44_100, 48_000, 96_000)
CHANNELS = (1, 2, 6)
LONG_NAME = "n" * 240


def replace_vocals(folder: Path, samples: np.ndarray, rate_hz: int = 16_000, subtype: str = "FLOAT") -> None:
    """Other samples in a song's vocal stem."""
    soundfile.write(folder / "vocals.wav", samples, rate_hz, subtype=subtype)


def cut_short(path: Path, share: float = 0.5) -> None:
    """Keep the first ``share`` of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def write_odd_songs(root: Path) -> None:
    """A folder of stems: ``good-*`` songs and one song for every fault."""
    for number in range(3):
        write_stems(root / f"good-{number}", SECONDS, seed=number)
    for seed, rate_hz in enumerate(RATES_HZ, 10):
        write_stems(root / f"rate-{rate_hz}", SECONDS, seed=seed, rate_hz=rate_hz)
    for seed, channels in enumerate(CHANNELS, 20):
        write_stems(root / f"channels-{channels}", SECONDS, seed=seed, channels=channels)
    for seed, suffix in enumerate((".wav", ".mp3", ".flac"), 30):
        write_stems(root / f"truncated{suffix}", SECONDS, seed=seed, suffix=suffix, rate_hz=44_100)
        cut_short(root / f"truncated{suffix}" / f"vocals{suffix}")
    vocal, _ = vocal_and_band(SECONDS, 40)
    (write_stems(root / "zero-bytes", SECONDS, 41) / "vocals.wav").write_bytes(b"")
    (write_stems(root / "text", SECONDS, 42) / "vocals.wav").write_text("these are lyrics, not a sound\n" * 100)
    replace_vocals(write_stems(root / "zero-frames", SECONDS, 43), np.zeros((0, 1), np.float32))
    write_stems(root / "300-samples", 300 / 16_000, 44)
    broken = vocal.copy()
    broken[20_000] = np.nan
    replace_vocals(write_stems(root / "nan", SECONDS, 45), broken)
    replace_vocals(write_stems(root / "dc", SECONDS, 46), np.full_like(vocal, 0.3))
    replace_vocals(write_stems(root / "no-vocals", SECONDS, 47), np.zeros_like(vocal))
    write_stems(root / "duplicate", SECONDS * 3, seed=48, rate_hz=22_050)
    write_stems(root / "duplicate-again", SECONDS * 3, seed=48, suffix=".flac")
    write_stems(root / LONG_NAME, SECONDS, seed=49)
    write_stems(Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")), SECONDS, seed=50)
    (root / "loop").symlink_to(root)
    (root / "good-0" / "loop").symlink_to(root)
    closed = write_stems(root / "no-permission", SECONDS, seed=51) / "vocals.wav"
    closed.chmod(0)


def kept_clips(root: Path) -> dict[str, int]:
    """Song -> clips in the training split."""
    counts: dict[str, int] = {}
    for clip in ShardReader(root / "train").clip_ids:
        counts[song_of(clip)] = counts.get(song_of(clip), 0) + 1
    return counts


def reasons(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name -> reason of the entries of a report."""
    return {entry["name"]: entry["reason"] for entry in entries}
