"""Corpora in the layout of MUSDB18-HQ: the data set itself, its ``.stem.mp4`` form, decoded once, and the toy band."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_folder, printable
from hafm_lightning.progress import progress
from hafm_lightning.songs.song import Listing, Quarantined, Song, audio_by_folder, existing_folder, reason_of
from hafm_lightning.toyband.corpus import STEMS, synthesise_corpus

MUSDB_SONGS = {"train": 100, "test": 50}
STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # order of the streams in a `.stem.mp4`
_ENDING = ".stem.mp4"


@dataclass(frozen=True)
class MusdbHQ:
    """MUSDB18-HQ: ``{train,test}/<artist - title>/{mixture,vocals,drums,bass,other}.wav``.

    Attributes:
        path: The folder that holds ``train`` and ``test``.
        allow_partial: Accept a copy with fewer than 100 + 50 songs.
    """

    path: str
    allow_partial: bool = False

    def listing(self) -> Listing:
        """Songs of ``train`` and ``test``; the test songs feed the test shards."""
        root = existing_folder(self.path)
        quarantined: list[Quarantined] = []
        left_out: list[Quarantined] = []
        songs = []
        for split, expected in MUSDB_SONGS.items():
            by_folder = audio_by_folder(root / split, quarantined, left_out)
            folders = [(path, files) for path, files in by_folder.items() if path.parent == root / split]
            if len(folders) != expected and not self.allow_partial:
                raise RequestError(
                    f"{root / split} holds {len(folders)} songs, MUSDB18-HQ has {expected}\n"
                    "complete the copy, or set allow_partial: true to use these songs"
                )
            for folder, files in folders:
                named = {path.stem: (str(path), size) for path, size in files if path.suffix.lower() == ".wav"}
                missing = [stem for stem in STEMS if stem not in named]
                name = printable(folder.name)
                if missing:
                    reason = f"incomplete: no {', '.join(stem + '.wav' for stem in missing)}"
                    quarantined.append(Quarantined(f"{split}/{name}", reason))
                    continue
                size = sum(named[stem][1] for stem in STEMS)
                artist = name.partition(" - ")[0] if " - " in name else ""
                mixture = named["mixture"][0] if "mixture" in named else ""
                vocals, *parts = (named[stem][0] for stem in STEMS)
                songs.append(Song(name, split, mixture, vocals, tuple(parts), size, artist))
        if not songs:
            raise RequestError(f"{root} holds no songs in train/ or test/; give the folder of MUSDB18-HQ as `path`")
        return Listing(songs, quarantined, left_out)


@dataclass(frozen=True)
class MusdbStems:
    """MUSDB18 as ``.stem.mp4`` files, decoded once into the layout of MUSDB18-HQ by the ``musdb`` package and ffmpeg.

    Attributes:
        path: The folder that holds ``train`` and ``test`` with ``*.stem.mp4``.
        decoded: Folder of the wav files (about 30 GB for all 150 songs); kept for the next run.
        allow_partial: Accept a copy with fewer than 100 + 50 songs.
    """

    path: str
    decoded: str
    allow_partial: bool = False

    def listing(self) -> Listing:
        """Decode the songs that are not decoded yet, then list all as MUSDB18-HQ."""
        quarantined = self._decode()
        listing = MusdbHQ(self.decoded, self.allow_partial or bool(quarantined)).listing()
        return replace(listing, quarantined=quarantined + listing.quarantined)

    def _decode(self) -> list[Quarantined]:
        """Write the folders that are missing; returns the songs that could not be decoded."""
        source, target = existing_folder(self.path), Path(self.decoded).expanduser()
        files = [(split, path) for split in MUSDB_SONGS for path in sorted((source / split).glob(f"*{_ENDING}"))]
        if not files:
            raise RequestError(f"{source} holds no train/*{_ENDING} or test/*{_ENDING}; give the folder of MUSDB18")
        for split, expected in MUSDB_SONGS.items():  # before 30 GB are decoded
            found = sum(name == split for name, _ in files)
            if found != expected and not self.allow_partial:
                raise RequestError(
                    f"{source / split} holds {found} songs, MUSDB18 has {expected}; nothing was decoded\n"
                    "complete the copy, or set allow_partial: true to use these songs"
                )
        songs = [(split, path, target / split / path.name.removesuffix(_ENDING)) for split, path in files]
        missing = [song for song in songs if not song[2].is_dir()]
        if not missing:
            return []
        quarantined, track_class = [], _track_class()
        with progress("Decoding MUSDB18", len(missing), "songs") as bar:
            for split, path, folder in missing:
                try:
                    with atomic_folder(folder) as draft:
                        for number, name in enumerate(STREAMS):
                            audio = _stream(track_class, path, split, number)
                            # Lossy coding sometimes exceeds full scale, which 16 bits cannot hold.
                            loud = np.abs(audio.samples).max(initial=0.0) > 1
                            write_audio(draft / f"{name}.wav", audio, subtype="FLOAT" if loud else "PCM_16")
                except _UndecodableError as error:
                    quarantined.append(Quarantined(f"{split}/{printable(folder.name)}", f"cannot be decoded: {error}"))
                bar.advance(1, path.name)
        return quarantined


@dataclass(frozen=True)
class ToyBand:
    """Songs synthesised by :mod:`hafm_lightning.toyband.corpus`, in the layout of MUSDB18-HQ.

    Attributes:
        path: Folder of the songs; missing songs are synthesised, complete songs are kept.
        train_songs: Number of songs in ``train``.
        test_songs: Number of songs in ``test``.
        duration_s: Length of a song, in seconds.
        seed: The same seed gives the same songs.
    """

    path: str
    train_songs: int = 90
    test_songs: int = 10
    duration_s: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train_songs < 2 or self.test_songs < 1 or not self.duration_s > 0:
            raise ValueError("a toy band needs at least 2 train songs, 1 test song and a positive duration_s")

    def listing(self) -> Listing:
        """Synthesise the missing songs, then list all."""
        root = Path(self.path).expanduser()
        synthesise_corpus(root, self.train_songs, self.test_songs, self.duration_s, self.seed)
        return MusdbHQ(self.path, allow_partial=True).listing()


def _track_class() -> Any:
    needed = [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]
    if needed:
        raise RequestError(
            f"reading {_ENDING} needs {' and '.join(needed)}, which this machine does not have\n"
            "install ffmpeg, or use MUSDB18-HQ (wav) with kind: MusdbHQ"
        )
    try:
        from musdb import MultiTrack
    except ImportError:
        raise RequestError(
            f"reading {_ENDING} needs the package musdb: pip install musdb\nor use MUSDB18-HQ (wav) with kind: MusdbHQ"
        ) from None
    return MultiTrack


class _UndecodableError(Exception):
    """The file does not hold five audio streams. Other errors come from the target folder."""


def _stream(track_class: Any, path: Path, split: str, number: int) -> Audio:
    try:
        track = track_class(path=str(path), name=path.name.removesuffix(_ENDING), subset=split, stem_id=0)
        samples = np.asarray(track.load_audio(str(path), number), dtype=np.float32)
        return Audio(np.ascontiguousarray(samples.T), int(track.rate))
    except OSError as error:
        raise _UndecodableError(reason_of(error)) from error
    except Exception as error:  # errors of musdb, stempeg and ffmpeg-python have no common base but Exception
        output = getattr(error, "stderr", None)  # ffmpeg-python's own message does not give the reason
        lines = output.decode("utf-8", "replace").strip().splitlines() if isinstance(output, bytes) else []
        raise _UndecodableError(lines[-1] if lines else " ".join(str(error).split())) from error
