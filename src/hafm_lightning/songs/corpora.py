"""Corpora: where songs come from, and what is known about them before their sound is read.

A corpus lists its songs in an order that depends on names alone, and puts aside (:class:`Quarantined`) what it cannot
list. Kinds: :class:`SongFolder` (mixes, which need separation; FMA with its metadata), :class:`StemFolder`,
:class:`MusdbHQ`, :class:`MusdbStems` (``.stem.mp4``), and :class:`ToyBand`, which synthesises its songs first.

Choices:

* Listing never opens audio. Whether a file can be read is found out when it is, and a bad one costs that song only.
* Folders are followed through symbolic links, each real folder once, so that loops end.
* A song's id is text that any encoding holds, whatever bytes its file name is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from hafm_lightning.errors import RequestError
from hafm_lightning.files import printable
from hafm_lightning.songs.song import Listing, Quarantined, Song, walk_audio

MUSDB_STEMS = ("vocals", "drums", "bass", "other")
MUSDB_SONGS = {"train": 100, "test": 50}
SPLIT_CHOICES = ("train", "validation", "test")


class Corpus(Protocol):
    """A source of songs; the settings of each kind are the fields of its dataclass."""

    path: str

    def listing(self) -> Listing:
        """All songs; RequestError where the corpus itself is missing."""


@dataclass(frozen=True)
class SongFolder:
    """A folder of mixes, in any arrangement of subfolders. They need separation.

    Attributes:
        path: The folder; for FMA the one that holds ``000/000002.mp3``.
        split: Which shards the songs feed: ``train`` (divided into train and validation), ``validation`` or ``test``.
        metadata: FMA's ``fma_metadata`` folder (``tracks.csv``, ``genres.csv``): artist, genre, licence and duration
            of each track. Empty: no metadata.
        use_fma_split: Take training, validation and test from the metadata instead of drawing them.
        genres: Keep only songs of these genres (top level, as the metadata write them); empty keeps all.
        licences: Keep only songs whose licence contains one of these texts; empty keeps all.
        without_licences: Leave out songs whose licence contains one of these texts ("NoDerivatives").
        min_duration_s: Leave out songs that the metadata call shorter.
        max_duration_s: Leave out songs that the metadata call longer; 0 keeps all.
    """

    path: str
    split: str = "train"
    metadata: str = ""
    use_fma_split: bool = False
    genres: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    without_licences: tuple[str, ...] = ()
    min_duration_s: float = 0.0
    max_duration_s: float = 0.0

    def __post_init__(self) -> None:
        _check_split(self.split)

    def listing(self) -> Listing:
        """Every audio file below the folder is a song."""
        from hafm_lightning.songs.fma import read_tracks

        root = _existing(self.path)
        quarantined: list[Quarantined] = []
        tracks = read_tracks(Path(self.metadata).expanduser()) if self.metadata else {}
        songs, left_out = [], []
        for path, size in walk_audio(root, quarantined):
            relative = path.relative_to(root)
            if not tracks:
                songs.append(Song(printable(str(relative)), self.split, mixture=str(path), bytes=size))
                continue
            track = tracks.get(int(path.stem)) if path.stem.isdecimal() else None
            if track is None:
                left_out.append(Quarantined(printable(str(relative)), "not in the metadata"))
                continue
            given = self.use_fma_split and bool(track.split)
            song = Song(
                path.stem,
                track.split if given else self.split,
                mixture=str(path),
                bytes=size,
                artist=track.artist,
                genre=track.genre,
                licence=track.licence,
                split_given=given,
            )
            reason = self._exclusion(song, track.duration_s)
            if reason:
                left_out.append(Quarantined(song.id, reason))
            else:
                songs.append(song)
        return Listing(songs, quarantined, left_out)

    def _exclusion(self, song: Song, duration_s: float) -> str:
        if self.genres and song.genre not in self.genres:
            return f"genre {song.genre or 'unknown'!r} is not wanted"
        licence = song.licence.lower()
        if self.licences and not any(text.lower() in licence for text in self.licences):
            return f"licence {song.licence or 'unknown'!r} is not wanted"
        if any(text.lower() in licence for text in self.without_licences):
            return f"licence {song.licence!r} is excluded"
        if 0 < duration_s < self.min_duration_s:  # 0: not known
            return f"shorter than {self.min_duration_s:g} s"
        if self.max_duration_s and duration_s > self.max_duration_s:
            return f"longer than {self.max_duration_s:g} s"
        return ""


@dataclass(frozen=True)
class StemFolder:
    """Folders of stems: ``<song>/vocals.*`` and ``accompaniment.*``, or other stems that are summed.

    Attributes:
        path: The folder that holds the songs' folders, at any depth.
        split: Which shards the songs feed.
        vocals: Name of the vocal stem, without its ending.
        mixture: Name of a mixture file beside the stems, which is not part of the sum.
    """

    path: str
    split: str = "train"
    vocals: str = "vocals"
    mixture: str = "mixture"

    def __post_init__(self) -> None:
        _check_split(self.split)

    def listing(self) -> Listing:
        """Every folder with audio files is a song."""
        root = _existing(self.path)
        quarantined: list[Quarantined] = []
        folders: dict[Path, list[tuple[Path, int]]] = {}
        for path, size in walk_audio(root, quarantined):
            folders.setdefault(path.parent, []).append((path, size))
        songs = []
        for folder, files in folders.items():
            name = printable(str(folder.relative_to(root))) if folder != root else printable(root.name)
            song = song_of_stems(name, self.split, files, self.vocals, self.mixture)
            if isinstance(song, Quarantined):
                quarantined.append(song)
            else:
                songs.append(song)
        return Listing(songs, quarantined, [])


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
        root = _existing(self.path)
        quarantined: list[Quarantined] = []
        songs = []
        for split, expected in MUSDB_SONGS.items():
            folders = [
                (path, files) for path, files in _song_folders(root / split, quarantined) if path.parent == root / split
            ]
            if len(folders) != expected and not self.allow_partial:
                raise RequestError(
                    f"{root / split} holds {len(folders)} songs, MUSDB18-HQ has {expected}\n"
                    "complete the copy, or set allow_partial: true to use what is there"
                )
            for folder, files in folders:
                named = {path.stem: (path, size) for path, size in files if path.suffix.lower() == ".wav"}
                missing = [stem for stem in MUSDB_STEMS if stem not in named]
                name = printable(folder.name)
                if missing:
                    reason = f"incomplete: no {', '.join(stem + '.wav' for stem in missing)}"
                    quarantined.append(Quarantined(f"{split}/{name}", reason))
                    continue
                artist = name.partition(" - ")[0] if " - " in name else ""
                songs.append(_musdb_song(name, split, named, artist))
        if not songs:
            raise RequestError(f"{root} holds no songs in train/ or test/; give the folder of MUSDB18-HQ as `path`")
        return Listing(songs, quarantined, [])


@dataclass(frozen=True)
class MusdbStems:
    """MUSDB18 as ``.stem.mp4`` files, decoded once into the layout of MUSDB18-HQ by the ``musdb`` package and ffmpeg.

    Attributes:
        path: The folder that holds ``train`` and ``test`` with ``*.stem.mp4``.
        decoded: Where the wav files go (about 30 GB for all 150 songs); kept for the next run.
        allow_partial: Accept a copy with fewer than 100 + 50 songs.
    """

    path: str
    decoded: str
    allow_partial: bool = False

    def listing(self) -> Listing:
        """Decode what is not decoded yet, then list it as MUSDB18-HQ."""
        from hafm_lightning.songs.musdb_stems import decode_stems

        quarantined = decode_stems(_existing(self.path), Path(self.decoded).expanduser())
        listing = MusdbHQ(self.decoded, self.allow_partial or bool(quarantined)).listing()
        return replace(listing, quarantined=quarantined + listing.quarantined)


@dataclass(frozen=True)
class ToyBand:
    """Songs synthesised by :mod:`hafm_lightning.toyband.corpus`, in the layout of MUSDB18-HQ.

    Attributes:
        path: Where the songs are, or are written; complete ones are reused.
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
        """Synthesise the songs that are missing, then list them all."""
        from hafm_lightning.toyband.corpus import synthesise_corpus

        synthesise_corpus(
            Path(self.path).expanduser(),
            train_songs=self.train_songs,
            test_songs=self.test_songs,
            duration_s=self.duration_s,
            seed=self.seed,
        )
        return MusdbHQ(self.path, allow_partial=True).listing()


AnyCorpus = SongFolder | StemFolder | MusdbHQ | MusdbStems | ToyBand


def list_songs(corpora: tuple[AnyCorpus, ...]) -> Listing:
    """All songs of several corpora, with distinct ids.

    An id that occurs twice gets its split in front, or the number of its corpus if that does not tell them apart.
    """
    parts = [corpus.listing() for corpus in corpora]
    named: dict[str, list[tuple[int, Song]]] = {}
    for number, part in enumerate(parts):
        for song in part.songs:
            named.setdefault(song.id, []).append((number, song))
    songs = []
    for name, entries in named.items():
        by_split = len({song.split for _, song in entries}) == len(entries)
        for number, song in entries:
            prefix = "" if len(entries) == 1 else f"{song.split}/" if by_split else f"{number}:"
            songs.append(replace(song, id=prefix + name))
    return Listing(
        songs,
        [entry for part in parts for entry in part.quarantined],
        [entry for part in parts for entry in part.left_out],
    )


def song_of_stems(
    name: str, split: str, files: list[tuple[Path, int]], vocals: str, mixture: str
) -> Song | Quarantined:
    """The song that a folder of stems holds, or why it holds none."""
    stems: dict[str, list[tuple[Path, int]]] = {}
    for path, size in files:
        stems.setdefault(path.stem, []).append((path, size))
    doubled = [stem for stem, paths in stems.items() if len(paths) > 1]
    if doubled:
        return Quarantined(name, f"stem {doubled[0]!r} is there twice; keep one file of it")
    rest = [stem for stem in stems if stem not in (vocals, mixture)]
    if vocals not in stems:
        return Quarantined(name, f"no {vocals}.* beside {', '.join(sorted(stems))}")
    if "accompaniment" in rest:
        rest = ["accompaniment"]
    if not rest:
        return Quarantined(name, "no accompaniment.* and no other stems beside the vocals")
    return Song(
        name,
        split,
        mixture=str(stems[mixture][0][0]) if mixture in stems else "",
        vocals=str(stems[vocals][0][0]),
        accompaniment=tuple(str(stems[stem][0][0]) for stem in sorted(rest)),
        bytes=sum(size for stem in {vocals, *rest} for _, size in stems[stem]),
    )


def _musdb_song(name: str, split: str, named: dict[str, tuple[Path, int]], artist: str) -> Song:
    return Song(
        name,
        split,
        mixture=str(named["mixture"][0]) if "mixture" in named else "",
        vocals=str(named["vocals"][0]),
        accompaniment=tuple(str(named[stem][0]) for stem in MUSDB_STEMS[1:]),
        bytes=sum(named[stem][1] for stem in MUSDB_STEMS),
        artist=artist,
    )


def _song_folders(root: Path, quarantined: list[Quarantined]) -> Iterator[tuple[Path, list[tuple[Path, int]]]]:
    if not root.is_dir():
        return
    folders: dict[Path, list[tuple[Path, int]]] = {}
    for path, size in walk_audio(root, quarantined):
        folders.setdefault(path.parent, []).append((path, size))
    yield from folders.items()


def _existing(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RequestError(f"corpus folder {folder} does not exist; correct `path` in the configuration's `corpora`")
    return folder


def _check_split(split: str) -> None:
    if split not in SPLIT_CHOICES:
        raise ValueError(f"split is {split!r}, choose one of {', '.join(SPLIT_CHOICES)}")
