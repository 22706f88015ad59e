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
_EXAMPLES = "examples"
_OWN_MARKS = ("take.json", "work/settings.json", "card.json", "study.json")
"""Files of a take, a preparation, an evaluation card and a listening study."""
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


def audio_by_folder(
    root: Path, quarantined: list[Quarantined], left_out: list[Quarantined]
) -> dict[Path, list[tuple[Path, int]]]:
    """Folder -> its audio files with their sizes, in the order of :func:`walk_audio`; empty without ``root``."""
    folders: dict[Path, list[tuple[Path, int]]] = {}
    for path, size in walk_audio(root, quarantined, left_out) if root.is_dir() else ():
        folders.setdefault(path.parent, []).append((path, size))
    return folders


def walk_audio(
    root: Path, quarantined: list[Quarantined], left_out: list[Quarantined] | None = None
) -> Iterator[tuple[Path, int]]:
    """Audio files below ``root`` with their sizes, sorted by name.

    Unreadable ones go to ``quarantined``. To ``left_out`` go folders that this program wrote (takes, preparations,
    cards), and one entry with the number of hidden files, such as the ``._*.wav`` of macOS.
    """

    def put_aside(error: OSError) -> None:
        quarantined.append(Quarantined(printable(error.filename), f"folder cannot be opened: {error.strerror}"))

    left_out = [] if left_out is None else left_out
    seen: set[tuple[int, int]] = set()
    hidden: list[str] = []
    for folder, folders, names in os.walk(root, onerror=put_aside, followlinks=True):
        real = Path(folder).stat()
        if (real.st_dev, real.st_ino) in seen:
            folders.clear()
            continue
        seen.add((real.st_dev, real.st_ino))
        mark = own_output(Path(folder))
        if mark and Path(folder) != root:
            left_out.append(Quarantined(printable(folder), f"an output folder of this program (it holds {mark})"))
            folders.clear()
            continue
        if mark:  # prepared into the folder of the songs: its sound examples are no songs
            folders[:] = [name for name in folders if name != _EXAMPLES]
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        for name in sorted(names, key=os.fsencode):
            path = Path(folder, name)
            if path.suffix.lower() not in AUDIO_SUFFIXES:
                continue
            if name.startswith("."):
                hidden.append(name)
                continue
            try:
                status = path.stat()
            except OSError as error:  # a link to nothing or to itself, or no permission
                quarantined.append(Quarantined(printable(str(path)), f"cannot be reached: {error.strerror}"))
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size
    if hidden:
        left_out.append(
            Quarantined(printable(str(root)), f"{len(hidden)} hidden files (the first: {printable(hidden[0])})")
        )


def own_output(folder: Path) -> str:
    """The file by which a folder is known as an output of this program; empty for other folders."""
    return next((mark for mark in _OWN_MARKS if (folder / mark).is_file()), "")


def reason_of(error: Exception) -> str:
    """The reason to quarantine a song, in one line; raises errors of this machine (disk, memory, open files) again."""
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
