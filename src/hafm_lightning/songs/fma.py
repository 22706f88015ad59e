"""The metadata of the Free Music Archive dataset: ``fma_metadata/tracks.csv`` and ``genres.csv``.

``tracks.csv`` has three header lines: groups (``track``, ``artist``, ``set``), names in the group, and the name of the
index. Source: Defferrard et al., "FMA: A dataset for music analysis", ISMIR 2017.
"""

from __future__ import annotations

import ast
import csv
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.errors import RequestError

_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Track:
    """Metadata of one track."""

    artist: str  # the artist's number, or name if there is no number
    genre: str  # top-level genre; empty if unknown
    licence: str
    duration_s: float  # of the whole track (`fma_large` has 30 s of it); 0 if unknown
    split: str  # `train`, `validation` or `test`, with an artist in one split only; empty if unknown


def read_tracks(folder: Path) -> dict[int, Track]:
    """Track number -> metadata; RequestError if ``tracks.csv`` is missing or is not FMA's."""
    path = folder / "tracks.csv"
    genres = _top_genres(folder / "genres.csv")
    tracks = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            groups, names = next(rows), next(rows)
            next(rows)
            column = {f"{group}.{name}": index for index, (group, name) in enumerate(zip(groups, names, strict=True))}
            for row in rows:
                tracks[int(row[0])] = _track(row, column, genres)
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist; give FMA's fma_metadata folder as `metadata`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError, IndexError, StopIteration, SyntaxError, csv.Error) as error:
        raise RequestError(f"{path} is not FMA's tracks.csv ({error!r}); fetch fma_metadata.zip again") from error
    if not tracks:
        raise RequestError(f"{path} lists no tracks; fetch fma_metadata.zip again")
    return tracks


def _track(row: list[str], column: dict[str, int], genres: dict[int, str]) -> Track:
    genre = row[column["track.genre_top"]]
    if not genre and "track.genres" in column:
        listed = ast.literal_eval(row[column["track.genres"]] or "[]")
        genre = next((genres[number] for number in listed if number in genres), "")
    artist_columns = [column[name] for name in ("artist.id", "artist.name") if name in column]
    return Track(
        artist=next((row[index] for index in artist_columns if row[index]), ""),
        genre=genre,
        licence=row[column["track.license"]],
        duration_s=float(row[column["track.duration"]] or 0),
        split=_SPLITS.get(row[column["set.split"]], "") if "set.split" in column else "",
    )


def _top_genres(path: Path) -> dict[int, str]:
    """Genre number -> title of its top-level genre; empty without the file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        titles = {int(row["genre_id"]): row["title"] for row in rows}
        return {int(row["genre_id"]): titles[int(row["top_level"])] for row in rows}
    except (KeyError, ValueError) as error:
        raise RequestError(f"{path} is not FMA's genres.csv ({error!r}); fetch fma_metadata.zip again") from error
