"""The survey opens every song once before the plan is made: unreadable files, lengths and fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import in_phase, probe_audio
from hafm_lightning.preparation.quality.fingerprint import fingerprint, sketch_to_text
from hafm_lightning.songs.song import Song, reason_of
from hafm_lightning.songs.stems import block_grid, probe_song, read_stretch, readable

SONGS_PER_BLOCK = 32  # surveyed together; a run that is stopped loses at most the blocks in progress


@dataclass(frozen=True)
class SongFacts:
    """Result of the survey for one song."""

    id: str  # the song
    duration_s: float = 0.0  # length of its sound, in seconds
    sketch: str = ""  # fingerprint as text; empty if duplicates are not searched
    problem: str = ""  # why the song cannot be used; empty if it can


@dataclass(frozen=True)
class SurveyWork:
    """Surveys blocks of songs, in any process."""

    fingerprints: bool  # decode every song for its fingerprint, instead of reading headers only

    def __call__(self, songs: tuple[Song, ...]) -> list[SongFacts]:
        """Facts of each song, in order."""
        return [self._survey(song) for song in songs]

    def _survey(self, song: Song) -> SongFacts:
        try:
            with readable(song, with_mixture=self.fingerprints) as files:
                info = probe_song(files)
                sketch = sketch_to_text(_sketch(files)) if self.fingerprints else ""
        except (OSError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:  # of decoders too
            return SongFacts(song.id, problem=reason_of(error))
        return SongFacts(song.id, info.duration_s, sketch)


def _sketch(song: Song) -> npt.NDArray[np.uint32]:
    """Fingerprint of the mixture, or of the sum of the stems if there is no mixture file."""
    paths = [Path(song.mixture)] if song.mixture else [Path(song.vocals), *map(Path, song.accompaniment)]
    infos = [probe_audio(path) for path in paths]
    rate_hz, frames = infos[0].rate_hz, max(info.frames for info in infos)

    def stretches() -> Iterator[npt.NDArray[np.float32]]:
        for start_s, stop_s in block_grid(frames / rate_hz):
            start, stop = round(start_s * rate_hz), min(round(stop_s * rate_hz), frames)
            total = np.zeros(stop - start, np.float32)
            for path in paths:
                samples = in_phase(read_stretch(path, rate_hz, start, stop), rate_hz)
                total += samples.mean(axis=0, dtype=np.float32)
            yield total

    return fingerprint(stretches(), rate_hz)
