"""Scores of single clips: coherence with the vocal and, for toy songs, with the known truth. Stored on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hafm_lightning.audio import read_audio
from hafm_lightning.evaluation.card.card import Column, Value
from hafm_lightning.evaluation.coherence.meaning import meaning_of
from hafm_lightning.evaluation.coherence.scores import SongTracks, toy_truth_scores
from hafm_lightning.evaluation.intervals import mean_interval
from hafm_lightning.evaluation.protocol.columns import LOST, Cells, bounds_of
from hafm_lightning.evaluation.segments import MusicClip, Segment, SelectedClips
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.files import write_json
from hafm_lightning.processes.pool import LocalPool
from hafm_lightning.progress import progress
from hafm_lightning.toyband.corpus import TRUTH_FILE
from hafm_lightning.toyband.score import ToyTruth
from hafm_lightning.untrusted import checked, read_json

VERSION = 2
"""Raised when a definition changes: older files are computed again."""


@dataclass(frozen=True)
class _Stored:
    """The content of a file of scores."""

    version: int
    clips: dict[str, dict[str, float]]


class ClipScores:
    """Scores of one system's clips, by segment, in a JSON file; computed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores: dict[str, dict[str, float]] = {}
        if path.is_file():
            advice = "delete it to compute it again"
            stored = checked(read_json(path, what="scores of clips", advice=advice), _Stored, path, advice)
            if stored.version == VERSION:
                self.scores = stored.clips

    def column(self, name: str, segments: Sequence[Segment]) -> list[float] | None:
        """One score of every segment, in order; None where it is not defined for these songs."""
        values = [self.scores[segment.key].get(name) for segment in segments]
        defined = [value for value in values if value is not None]
        return defined if len(defined) == len(values) else None


def score_played(
    clips: SelectedClips, played: Mapping[str, Generations], folder: Path, pool: LocalPool
) -> dict[str, ClipScores]:
    """Scores of every system's clips; only those that are not in ``folder`` yet are computed."""
    stores = {name: ClipScores(folder / f"{made.key}.json") for name, made in played.items()}
    units: list[tuple[Segment, dict[str, Path]]] = []
    for segment in clips.segments:
        missing = {name: played[name].file(segment) for name in stores if segment.key not in stores[name].scores}
        if missing:
            units.append((segment, missing))
    read = clips.load if pool.processes == 1 else clips.reader
    if units:
        with progress(f"{folder.parent.name}: clip scores", total=len(units), unit="clips") as bar:
            for index, scores_of in pool.map(partial(score_sounds, read), units):
                for name, scores in scores_of.items():
                    store = stores[name]
                    store.scores[units[index][0].key] = scores
                    write_json(store.path, {"version": VERSION, "clips": store.scores})
                bar.advance()
    return stores


def score_sounds(
    read: Callable[[Segment], MusicClip], unit: tuple[Segment, dict[str, Path]]
) -> dict[str, dict[str, float]]:
    """Scores of each system's accompaniment (a file) of one segment; may run in a worker process."""
    segment, files = unit
    clip = read(segment)
    truth_file = Path(segment.song.vocals).parent / TRUTH_FILE
    truth = ToyTruth.load(truth_file) if truth_file.is_file() else None  # songs of people have none
    tracks = SongTracks(clip.vocal, clip.accompaniment, clip.acoustic_hz)
    scores = {}
    for name, file in files.items():
        samples = read_audio(file).samples[0]
        scores[name] = tracks.scores(samples) | {LOST.key: float(meaning_of(samples, clip.acoustic_hz).lost)}
        if truth is not None:
            scores[name] |= toy_truth_scores(samples, clip.acoustic_hz, truth, segment.start_s)
    return scores


def clip_cells(clips: SelectedClips, scores: Mapping[str, ClipScores], columns: Sequence[Column]) -> Cells:
    """Means over clips with intervals over songs; columns that are not defined for these songs are left out."""
    cells: Cells = {}
    for column in columns:
        for name, store in scores.items():
            if (values := store.column(column.key, clips.segments)) is not None:
                value = Value.of(mean_interval(values, groups=clips.songs, bounds=bounds_of(column)))
                cells.setdefault(column, {})[name] = value
    return cells
