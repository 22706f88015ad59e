"""Songs: where they come from (corpora), their stems, separation, and how clips are cut.

``song`` <- ``folders``, ``fma``, ``musdb``, ``toy`` (the kinds) <- ``corpora`` (all of them). ``stems`` reads a song in
bounded memory, with ``separation`` where there is only a mixture, and ``clips`` cuts it.
"""

from hafm_lightning.songs.corpora import AnyCorpus, MusdbHQ, MusdbStems, SongFolder, StemFolder, ToyBand, list_songs
from hafm_lightning.songs.song import Corpus, Listing, Quarantined, Song

__all__ = [
    "AnyCorpus",
    "Corpus",
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
