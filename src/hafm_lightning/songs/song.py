"""Songs, listings of songs, and the audio files below a folder.

Choices:

* Listing opens no audio. Each song is read on its own later, and a damaged file is reported then.
* Symbolic links are followed; a real folder is entered once, so that a loop of links ends.
* A song's id is printable text, whatever the bytes of its file name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.files import printable

_FORMATS = "wav flac ogg oga opus mp3 aif aiff aifc au caf w64 rf64 m4a mp4 aac wma webm mka ape wv"
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
"""Files with these endings are songs or stems; others (pictures, texts) are ignored."""
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # not caused by the song


@dataclass(frozen=True)
class Song:
    """One song: its files and metadata. Paths are strings, so that a plan can be written as JSON."""

    id: str  # unique name, printable
    split: str  # `train` (divided into train and validation later), `validation` or `test`
    mixture: str = ""  # empty if there is none
    vocals: str = ""  # empty if the mixture has to be separated
    accompaniment: tuple[str, ...] = ()  # files whose sum is the accompaniment
    bytes: int = 0  # total size of the files; another size means a changed corpus
    artist: str = ""  # name or number; empty if unknown. Songs of one artist stay in one split
    genre: str = ""  # name; empty if unknown
    licence: str = ""  # as the corpus states it; empty if unknown
    split_given: bool = False  # the split comes from the corpus, so the song is never drawn for validation

    @property
    def needs_separation(self) -> bool:
        """True if there is only a mixture."""
        return not self.vocals


@dataclass(frozen=True)
class Quarantined:
    """A song, folder or file that is not used."""

    name: str  # song id, or path
    reason: str  # one line


@dataclass(frozen=True)
class Listing:
    """The songs of a corpus."""

    songs: list[Song]  # in a fixed order that depends on names alone; ids are distinct
    quarantined: list[Quarantined]  # files and folders that could not be listed
    left_out: list[Quarantined]  # songs that the settings exclude (a genre, a licence)


def existing_folder(path: str) -> Path:
    """The folder of a corpus; RequestError if it does not exist."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RequestError(f"corpus folder {folder} does not exist; correct `path` in the configuration's `corpora`")
    return folder


def audio_by_folder(root: Path, quarantined: list[Quarantined]) -> dict[Path, list[tuple[Path, int]]]:
    """Folder -> its audio files with their sizes, in the order of :func:`walk_audio`; empty without ``root``."""
    folders: dict[Path, list[tuple[Path, int]]] = {}
    for path, size in walk_audio(root, quarantined) if root.is_dir() else ():
        folders.setdefault(path.parent, []).append((path, size))
    return folders


def walk_audio(root: Path, quarantined: list[Quarantined]) -> Iterator[tuple[Path, int]]:
    """Audio files below ``root`` with their sizes, sorted by name; unreadable ones go to ``quarantined``."""

    def put_aside(error: OSError) -> None:
        quarantined.append(Quarantined(printable(error.filename), f"folder cannot be opened: {error.strerror}"))

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, onerror=put_aside, followlinks=True):
        real = Path(folder).stat()
        if (real.st_dev, real.st_ino) in seen:
            folders.clear()
            continue
        seen.add((real.st_dev, real.st_ino))
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        for name in sorted(names, key=os.fsencode):
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in AUDIO_SUFFIXES:
                continue
            try:
                status = path.stat()
            except OSError as error:  # a link to nothing or to itself, or no permission
                quarantined.append(Quarantined(printable(str(path)), f"cannot be reached: {error.strerror}"))
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size


def reason_of(error: OSError | ValueError) -> str:
    """The reason to quarantine a song, in one line; raises errors of this machine (disk, memory, open files) again."""
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
