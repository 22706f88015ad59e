"""The survey: every song is opened once before anything is planned.

It finds files that cannot be read, the songs' lengths (from which shards are planned) and their fingerprints (by which
a recording that occurs twice is kept once, and never on both sides of a split).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import probe_audio
from hafm_lightning.preparation.quality.fingerprint import fingerprint, sketch_to_text
from hafm_lightning.songs.song import Song, reason_of
from hafm_lightning.songs.stems import block_grid, probe_song, read_stretch, readable

SONGS_PER_BLOCK = 32
"""Songs that are surveyed together; a run that is stopped loses at most the blocks that were being worked on."""


@dataclass(frozen=True)
class SongFacts:
    """What the survey found out about one song.

    Attributes:
        id: The song.
        duration_s: Length of its sound, in seconds.
        sketch: Fingerprint as text; empty when duplicates are not looked for.
        problem: Why the song cannot be used; empty if it can.
    """

    id: str
    duration_s: float = 0.0
    sketch: str = ""
    problem: str = ""


@dataclass(frozen=True)
class SurveyWork:
    """Surveys blocks of songs, in any process.

    Attributes:
        fingerprints: Decode every song and take its fingerprint, instead of reading headers only.
    """

    fingerprints: bool

    def __call__(self, songs: tuple[Song, ...]) -> list[SongFacts]:
        """Facts of each song, in order; a song that cannot be read is a fact, not an error."""
        return [self._survey(song) for song in songs]

    def _survey(self, song: Song) -> SongFacts:
        try:
            with readable(song, with_mixture=self.fingerprints) as files:
                info = probe_song(files)
                sketch = sketch_to_text(_sketch(files)) if self.fingerprints else ""
        except (OSError, ValueError) as error:
            return SongFacts(song.id, problem=reason_of(error))
        return SongFacts(song.id, info.duration_s, sketch)


def _sketch(song: Song) -> npt.NDArray[np.uint32]:
    """Fingerprint of the mixture, or of the sum of the stems where there is no mixture file."""
    paths = [Path(song.mixture)] if song.mixture else [Path(song.vocals), *map(Path, song.accompaniment)]
    infos = [probe_audio(path) for path in paths]
    rate_hz, frames = infos[0].rate_hz, max(info.frames for info in infos)
    return fingerprint(_mono_stretches(paths, rate_hz, frames), rate_hz)


def _mono_stretches(paths: list[Path], rate_hz: int, frames: int) -> Iterator[npt.NDArray[np.float32]]:
    for start_s, stop_s in block_grid(frames / rate_hz):
        start, stop = round(start_s * rate_hz), min(round(stop_s * rate_hz), frames)
        total = np.zeros(stop - start, np.float32)
        for path in paths:
            total += read_stretch(path, rate_hz, start, stop).mean(axis=0, dtype=np.float32)
        yield total
