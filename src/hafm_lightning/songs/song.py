"""Songs, listings of songs, and the audio files below a folder.

Choices:

* Listing never opens audio. A file that cannot be read is noticed when it is read, and costs that song only.
* Folders are followed through symbolic links, each real folder once, so that loops end.
* A song's id is text that any encoding holds, whatever bytes its file name is made of.
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

_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of this machine, for which no song is to blame."""


@dataclass(frozen=True)
class Song:
    """One song: its files and metadata. Paths are strings, so that a plan can be written as JSON."""

    id: str  # unique name, printable
    split: str  # `train` (divided into train and validation later), `validation` or `test`
    mixture: str = ""  # file with everything in it; empty if there is none
    vocals: str = ""  # file with the vocals alone; empty means that the mixture has to be separated
    accompaniment: tuple[str, ...] = ()  # files that sum to everything but the vocals
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
    """Folder -> its audio files with their sizes, as :func:`walk_audio` finds them; empty if ``root`` is no folder."""
    folders: dict[Path, list[tuple[Path, int]]] = {}
    for path, size in walk_audio(root, quarantined) if root.is_dir() else ():
        folders.setdefault(path.parent, []).append((path, size))
    return folders


def walk_audio(root: Path, quarantined: list[Quarantined]) -> Iterator[tuple[Path, int]]:
    """Audio files below ``root`` with their sizes, sorted by name; unreadable ones go to ``quarantined``.

    Symbolic links are followed; a real folder is entered once, so that a loop of links ends.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            real = folder.stat()
            if (real.st_dev, real.st_ino) in seen:
                continue
            seen.add((real.st_dev, real.st_ino))
            paths = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
        except OSError as error:
            quarantined.append(Quarantined(printable(str(folder)), f"folder cannot be opened: {error.strerror}"))
            continue
        folders = []
        for path in paths:
            if path.name.startswith("."):
                continue
            audio = path.suffix.lower() in AUDIO_SUFFIXES
            try:
                status = path.stat()
            except OSError as error:  # a link that leads nowhere or around in a circle, or no permission
                if audio:
                    quarantined.append(Quarantined(printable(str(path)), f"cannot be reached: {error.strerror}"))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            elif audio and stat.S_ISREG(status.st_mode):
                yield path, status.st_size
        waiting += reversed(folders)


def reason_of(error: OSError | ValueError) -> str:
    """Why a song is quarantined, in one line; raises errors of this machine (disk, memory, open files) again."""
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
