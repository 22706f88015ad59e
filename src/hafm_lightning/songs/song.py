"""Songs, and the audio files below a folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.files import printable

AUDIO_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64", "rf64"),
        *("m4a", "mp4", "aac", "wma", "webm", "mka", "ape", "wv"),
    )
)
"""Files with these endings are songs or stems; others (pictures, texts) are passed over."""

_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that speak of this machine and not of a song."""


@dataclass(frozen=True)
class Song:
    """One song: its files and what is known of it. Paths are strings, so that a plan can be kept as JSON.

    Attributes:
        id: Unique name, printable.
        split: ``train`` (divided into train and validation later), ``validation`` or ``test``.
        mixture: File with everything in it; empty if there is none.
        vocals: File with the vocals alone; empty means that the mixture has to be separated.
        accompaniment: Files that sum to everything but the vocals.
        bytes: Total size of the files, by which a changed corpus is noticed.
        artist: Name or number; empty if unknown. Songs of one artist stay in one split.
        genre: Name; empty if unknown.
        licence: As the corpus states it; empty if unknown.
        split_given: The corpus itself says that the song is for training, so it is never drawn for validation.
    """

    id: str
    split: str
    mixture: str = ""
    vocals: str = ""
    accompaniment: tuple[str, ...] = ()
    bytes: int = 0
    artist: str = ""
    genre: str = ""
    licence: str = ""
    split_given: bool = False

    @property
    def needs_separation(self) -> bool:
        """Whether only the mixture is there."""
        return not self.vocals


@dataclass(frozen=True)
class Quarantined:
    """Something put aside.

    Attributes:
        name: Song id, or the path of a folder or file.
        reason: Why, in one line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a corpus holds.

    Attributes:
        songs: In a fixed order, ids distinct.
        quarantined: What could not be listed.
        left_out: Songs that settings exclude (a genre, a licence), with the reason.
    """

    songs: list[Song]
    quarantined: list[Quarantined]
    left_out: list[Quarantined]


def walk_audio(root: Path, quarantined: list[Quarantined]) -> Iterator[tuple[Path, int]]:
    """Audio files below ``root`` with their sizes, sorted by name; what cannot be opened goes to ``quarantined``.

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
    """Why a song is put aside, in one line.

    Raises:
        OSError: The same error, where it speaks of this machine (disk, memory, open files) and not of the song.
    """
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
