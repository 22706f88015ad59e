"""MUSDB18 in its first form, ``.stem.mp4``: decoded once to wav, in the layout of MUSDB18-HQ.

The ``musdb`` package reads the streams, and needs ffmpeg and ffprobe for it. Everything after that is
:class:`~hafm_lightning.songs.corpora.MusdbHQ`. A song's folder appears when all its files are written.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import printable
from hafm_lightning.progress import progress
from hafm_lightning.songs.corpora import MUSDB_SONGS
from hafm_lightning.songs.song import Quarantined, reason_of

STREAMS = ("mixture", "drums", "bass", "other", "vocals")
"""Order of the streams in a ``.stem.mp4``."""
_ENDING = ".stem.mp4"


def decode_stems(source: Path, target: Path) -> list[Quarantined]:
    """Write ``target/{train,test}/<song>/{mixture,vocals,drums,bass,other}.wav`` for every song that is not there yet.

    Returns:
        Songs that could not be decoded.

    Raises:
        RequestError: There are no such files, or musdb, ffmpeg or ffprobe is not installed, or ``target`` is full.
    """
    files = [(split, path) for split in MUSDB_SONGS for path in sorted((source / split).glob(f"*{_ENDING}"))]
    if not files:
        raise RequestError(f"{source} holds no train/*{_ENDING} or test/*{_ENDING}; give the folder of MUSDB18")
    missing = [(split, path) for split, path in files if not _folder(target, split, path).is_dir()]
    quarantined = []
    if missing:
        track_class = _track_class()
        with progress("Decoding MUSDB18", len(missing), "songs") as bar:
            for split, path in missing:
                try:
                    _decode(track_class, path, split, _folder(target, split, path))
                except _UndecodableError as error:
                    name = printable(path.name.removesuffix(_ENDING))
                    quarantined.append(Quarantined(f"{split}/{name}", f"cannot be decoded: {error}"))
                bar.advance(1, path.name)
    return quarantined


def _folder(target: Path, split: str, path: Path) -> Path:
    return target / split / path.name.removesuffix(_ENDING)


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
    """A file that holds no five streams of sound: its own fault, and none of the folder that is written to."""


def _decode(track_class: Any, path: Path, split: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".decoding-", dir=folder.parent))
    try:
        for number, name in enumerate(STREAMS):
            audio = _stream(track_class, path, split, number)
            # Lossy coding overshoots full scale now and then, which 16 bits cannot hold.
            loud = np.abs(audio.samples).max(initial=0.0) > 1
            write_audio(draft / f"{name}.wav", audio, subtype="FLOAT" if loud else "PCM_16")
        with suppress(OSError):  # some file systems have no permissions to set
            draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Another process has decoded the same song meanwhile.
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _stream(track_class: Any, path: Path, split: str, number: int) -> Audio:
    try:
        track = track_class(path=str(path), name=path.name.removesuffix(_ENDING), subset=split, stem_id=0)
        samples = np.asarray(track.load_audio(str(path), number), dtype=np.float32)
        return Audio(np.ascontiguousarray(samples.T), int(track.rate))
    except OSError as error:
        raise _UndecodableError(reason_of(error)) from error
    except Exception as error:  # what musdb, stempeg and ffmpeg-python raise has no common base but Exception
        told = getattr(error, "stderr", None)  # ffmpeg-python's message only says that there is one
        lines = told.decode("utf-8", "replace").strip().splitlines() if isinstance(told, bytes) else []
        raise _UndecodableError(lines[-1] if lines else " ".join(str(error).split())) from error
