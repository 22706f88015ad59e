"""Corpora of audio files in folders: mixes (with FMA's metadata), or folders of stems.

The metadata of the Free Music Archive dataset are ``tracks.csv`` and ``genres.csv``. ``tracks.csv`` has three header
lines: groups (``track``, ``artist``, ``set``), names in the group, and the name of the index. Source: Defferrard et
al., "FMA: A dataset for music analysis", ISMIR 2017.
"""

from __future__ import annotations

import ast
import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.errors import RequestError
from hafm_lightning.files import printable
from hafm_lightning.shards import SPLITS
from hafm_lightning.songs.song import Listing, Quarantined, Song, audio_by_folder, existing_folder, walk_audio


@dataclass(frozen=True)
class SongFolder:
    """A folder of mixes, at any depth. They need separation.

    Attributes:
        path: The folder; for FMA the one that holds ``000/000002.mp3``.
        split: Which shards the songs feed: ``train`` (divided into train and validation), ``validation`` or ``test``.
        metadata: FMA's ``fma_metadata`` folder (``tracks.csv``, ``genres.csv``): artist, genre, licence and duration
            of each track. Empty: no metadata.
        use_fma_split: Take the splits from the metadata instead of drawing them.
        genres: Keep only songs of these genres (top-level titles of the metadata); empty keeps all.
        licences: Keep only songs whose licence contains one of these texts; empty keeps all.
        without_licences: Leave out songs whose licence contains one of these texts ("NoDerivatives").
        min_duration_s: Leave out songs that are shorter, by the metadata.
        max_duration_s: Leave out songs that are longer, by the metadata; 0 keeps all.
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
        root = existing_folder(self.path)
        quarantined: list[Quarantined] = []
        tracks = _read_tracks(Path(self.metadata).expanduser()) if self.metadata else {}
        songs = []
        left_out: list[Quarantined] = []
        for path, size in walk_audio(root, quarantined, left_out):
            relative = path.relative_to(root)
            if not tracks:
                songs.append(Song(printable(str(relative)), self.split, mixture=str(path), bytes=size))
                continue
            track = tracks.get(int(path.stem)) if path.stem.isdecimal() else None
            if track is None:
                left_out.append(Quarantined(printable(str(relative)), "not in the metadata"))
                continue
            given = self.use_fma_split and bool(track.split)
            split, about = track.split if given else self.split, (track.artist, track.genre, track.licence)
            song = Song(path.stem, split, str(path), "", (), size, *about, split_given=given)
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
        root = existing_folder(self.path)
        quarantined: list[Quarantined] = []
        left_out: list[Quarantined] = []
        songs = []
        for folder, files in audio_by_folder(root, quarantined, left_out).items():
            name = printable(str(folder.relative_to(root))) if folder != root else printable(root.name)
            entry = self._song(name, files)
            if isinstance(entry, Quarantined):
                quarantined.append(entry)
            else:
                songs.append(entry)
        return Listing(songs, quarantined, left_out)

    def _song(self, name: str, files: list[tuple[Path, int]]) -> Song | Quarantined:
        stems = {path.stem: (str(path), size) for path, size in files}
        if len(stems) < len(files):
            repeated = next(stem for stem, count in Counter(path.stem for path, _ in files).items() if count > 1)
            return Quarantined(name, f"there are two files of the stem {repeated!r}; keep one")
        if self.vocals not in stems:
            return Quarantined(name, f"no {self.vocals}.* beside {', '.join(sorted(stems))}")
        rest = sorted(set(stems) - {self.vocals, self.mixture})
        if not rest:
            return Quarantined(name, "no accompaniment.* and no other stems beside the vocals")
        if "accompaniment" in rest:
            rest = ["accompaniment"]
        size = sum(stems[stem][1] for stem in {self.vocals, *rest})
        mixture = stems[self.mixture][0] if self.mixture in stems else ""
        parts = tuple(stems[stem][0] for stem in rest)
        return Song(name, self.split, mixture, stems[self.vocals][0], accompaniment=parts, bytes=size)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, choose one of {', '.join(SPLITS)}")


_LONGEST_FIELD = 2**31 - 1  # of a C long on every system
_FMA_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class _Track:
    """FMA's metadata of one track."""

    artist: str  # the artist's number, or name if there is no number
    genre: str  # top-level genre; empty if unknown
    licence: str
    duration_s: float  # of the whole track (`fma_large` has 30 s of it); 0 if unknown
    split: str  # `train`, `validation` or `test`, with an artist in one split only; empty if unknown


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length: biographies exceed its 131,072 characters."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_tracks(folder: Path) -> dict[int, _Track]:
    """Track number -> metadata; RequestError if the files are missing or not FMA's (``genres.csv`` may be missing)."""
    path, genres_path = folder / "tracks.csv", folder / "genres.csv"
    genres: dict[int, str] = {}
    tracks = {}
    try:
        if genres_path.is_file():
            with genres_path.open(newline="", encoding="utf-8") as file, _long_fields():
                listed = list(csv.DictReader(file))
            titles = {int(row["genre_id"]): row["title"] for row in listed}
            genres = {int(row["genre_id"]): titles[int(row["top_level"])] for row in listed}
        with path.open(newline="", encoding="utf-8") as file, _long_fields():
            rows = csv.reader(file)
            groups, names = next(rows), next(rows)
            next(rows)
            column = {f"{group}.{name}": index for index, (group, name) in enumerate(zip(groups, names, strict=True))}
            for row in rows:
                tracks[int(row[0])] = _track(row, column, genres)
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist; give FMA's fma_metadata folder as `metadata`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{folder}: tracks.csv or genres.csv cannot be read: {error}") from error
    except (ValueError, LookupError, StopIteration, SyntaxError, TypeError, RecursionError, csv.Error) as error:
        message = f"{folder}: tracks.csv or genres.csv is not FMA's ({error!r}); fetch fma_metadata.zip again"
        raise RequestError(message) from error
    if not tracks:
        raise RequestError(f"{path} lists no tracks; fetch fma_metadata.zip again")
    return tracks


def _track(row: list[str], column: dict[str, int], genres: dict[int, str]) -> _Track:
    genre = row[column["track.genre_top"]]
    if not genre and "track.genres" in column:
        listed = ast.literal_eval(row[column["track.genres"]] or "[]")
        genre = next((genres[number] for number in listed if number in genres), "")
    artist_columns = [column[name] for name in ("artist.id", "artist.name") if name in column]
    return _Track(
        artist=next((row[index] for index in artist_columns if row[index]), ""),
        genre=genre,
        licence=row[column["track.license"]],
        duration_s=float(row[column["track.duration"]] or 0),
        split=_FMA_SPLITS.get(row[column["set.split"]], "") if "set.split" in column else "",
    )
