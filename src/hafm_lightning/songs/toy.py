"""The toy band as a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.songs.musdb import MusdbHQ
from hafm_lightning.songs.song import Listing
from hafm_lightning.toyband.corpus import synthesise_corpus


@dataclass(frozen=True)
class ToyBand:
    """Songs synthesised by :mod:`hafm_lightning.toyband.corpus`, in the layout of MUSDB18-HQ.

    Attributes:
        path: Folder of the songs; missing ones are synthesised, complete ones are kept.
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
        synthesise_corpus(
            Path(self.path).expanduser(),
            train_songs=self.train_songs,
            test_songs=self.test_songs,
            duration_s=self.duration_s,
            seed=self.seed,
        )
        return MusdbHQ(self.path, allow_partial=True).listing()
