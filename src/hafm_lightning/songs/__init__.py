"""Songs: their sources (corpora), stems, separation, and how clips are cut.

``song`` <- ``folders`` (with ``fma``) and ``musdb``, the kinds of corpora <- this module, all kinds together. ``stems``
reads a song in bounded memory, with ``separation`` where there is only a mixture, and ``clips`` cuts it.
"""

from __future__ import annotations

from dataclasses import replace

from hafm_lightning.songs.folders import SongFolder, StemFolder
from hafm_lightning.songs.musdb import MusdbHQ, MusdbStems, ToyBand
from hafm_lightning.songs.song import Listing, Quarantined, Song

__all__ = [
    "AnyCorpus",
    "Listing",
    "MusdbHQ",
    "MusdbStems",
    "Quarantined",
    "Song",
    "SongFolder",
    "StemFolder",
    "ToyBand",
    "list_songs",
]

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
