"""Songs: the kinds of corpora (``folders``, ``musdb``), and the way from a song to clips.

``stems`` reads a song in bounded memory, ``separation`` separates it if there is only a mixture, ``clips`` cuts it.
"""

from __future__ import annotations

from dataclasses import replace

from hafm_lightning.songs.folders import SongFolder, StemFolder
from hafm_lightning.songs.musdb import MusdbHQ, MusdbStems, ToyBand
from hafm_lightning.songs.song import Listing, Song

__all__ = ["AnyCorpus", "MusdbHQ", "MusdbStems", "SongFolder", "StemFolder", "ToyBand", "list_songs"]

AnyCorpus = SongFolder | StemFolder | MusdbHQ | MusdbStems | ToyBand


def list_songs(corpora: tuple[AnyCorpus, ...]) -> Listing:
    """All songs of several corpora, with distinct ids.

    Ids that occur twice get their split as a prefix, or the number of their corpus if the splits are the same too.
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
