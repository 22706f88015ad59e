"""Small corpora for tests: seconds of sung tones over chords, in files of any shape."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from hafm_lightning.audio import resample
from hafm_lightning.songs.clips import MARGIN_S, ClipSettings, clip_starts
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import Window, cut_windows, probe_song, read_blocks

RATE_HZ = 16_000


def vocal_and_band(seconds: float, seed: int, rate_hz: int = RATE_HZ) -> tuple[np.ndarray, np.ndarray]:
    """A melody with vibrato and its chords, float32 ``[L]`` each; another seed gives another song."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    vocal, band = np.zeros_like(time), 0.003 * generator.standard_normal(len(time))
    begin = 0.0
    while begin < seconds:
        length = generator.uniform(0.25, 0.6)
        now = (time >= begin) & (time < begin + length)
        root = 110 * 2 ** (generator.integers(0, 12) / 12)
        hz = root * 2 * 2 ** (generator.choice([0, 4, 7]) / 12)
        local = time[now] - begin
        phase = 2 * np.pi * hz * (local + 0.01 * np.sin(2 * np.pi * 5.5 * local) / 5.5)
        for harmonic in range(1, 6):
            vocal[now] += 0.12 / harmonic * np.sin(harmonic * phase)
        for interval in (0, 4, 7):
            band[now] += 0.1 * np.sin(2 * np.pi * root * 2 ** (interval / 12) * local) * np.exp(-2 * local)
        band[now] += 0.15 * np.exp(-60 * local) * generator.standard_normal(now.sum())
        begin += length
    return tuple(resample(part.astype(np.float32), RATE_HZ, rate_hz) for part in (vocal, band))


def write_stems(
    folder: Path,
    seconds: float = 6.0,
    seed: int = 0,
    *,
    rate_hz: int = RATE_HZ,
    channels: int = 1,
    suffix: str = ".wav",
    subtype: str | None = None,
) -> Path:
    """Write ``vocals`` and ``accompaniment`` into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mono in zip(("vocals", "accompaniment"), vocal_and_band(seconds, seed, rate_hz), strict=True):
        samples = np.stack([mono * (1 - 0.1 * channel) for channel in range(channels)], axis=1)
        soundfile.write(os.fsencode(folder / f"{name}{suffix}"), samples, rate_hz, subtype=subtype)
    return folder


def write_musdb(root: Path, train: int = 3, test: int = 1, seconds: float = 6.0) -> Path:
    """A partial MUSDB18-HQ with small files."""
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            folder = root / split / f"Artist {number} - Song {split} {number}"
            folder.mkdir(parents=True)
            vocal, band = vocal_and_band(seconds, seed=100 * (split == "test") + number)
            parts = {"vocals": vocal, "drums": 0.2 * band, "bass": 0.3 * band, "other": 0.5 * band}
            parts["mixture"] = vocal + band
            for name, samples in parts.items():
                soundfile.write(folder / f"{name}.wav", samples, RATE_HZ)
    return root


def write_tracks_csv(folder: Path, tracks: list[dict[str, str]]) -> Path:
    """FMA's ``tracks.csv`` and ``genres.csv`` with the columns that matter and one that does not."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [
        ("album", "comments"),
        ("artist", "id"),
        ("artist", "name"),
        ("set", "split"),
        ("set", "subset"),
        ("track", "duration"),
        ("track", "genre_top"),
        ("track", "genres"),
        ("track", "license"),
    ]
    lines = [
        "," + ",".join(group for group, _ in columns),
        "," + ",".join(name for _, name in columns),
        "track_id" + "," * len(columns),
    ]
    for track in tracks:
        cells = [track.get(f"{group}.{name}", "") for group, name in columns]
        lines.append(",".join([track["id"], *(f'"{cell}"' if "," in cell else cell for cell in cells)]))
    (folder / "tracks.csv").write_text("\n".join(lines) + "\n")
    (folder / "genres.csv").write_text(
        "genre_id,#tracks,parent,title,top_level\n12,9,0,Rock,12\n85,3,12,Garage,12\n21,5,0,Hip-Hop,21\n"
    )
    return folder


def touch(path: Path, size: int = 4) -> Path:
    """A file of ``size`` bytes that are no sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def stem_song(folder: Path, **settings) -> Song:
    """The song of :func:`write_stems`."""
    write_stems(folder, **settings)
    vocals, band = (str(folder / f"{name}{settings.get('suffix', '.wav')}") for name in ("vocals", "accompaniment"))
    return Song(folder.name, "train", vocals=vocals, accompaniment=(band,))


def windows_of(song: Song, **clips: float) -> tuple[float, Iterator[Window]]:
    """Length of a song of stems in seconds, and the windows of its clips."""
    settings, info = ClipSettings(**clips), probe_song(song)
    starts = iter(clip_starts(info.duration_s, settings))
    blocks = read_blocks(song, None)
    return info.duration_s, cut_windows(blocks, info.rate_hz, starts, settings.duration_s, MARGIN_S)
