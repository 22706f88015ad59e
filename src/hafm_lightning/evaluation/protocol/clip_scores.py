"""Numbers of single clips: coherence with the vocal and, for toy songs, with the known truth. Kept on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.coherence.scores import TOY_METRICS, coherence_scores, toy_truth_scores
from hafm_lightning.evaluation.segments import MusicClip, Segment
from hafm_lightning.files import write_json
from hafm_lightning.toyband.corpus import TRUTH_FILE
from hafm_lightning.toyband.score import ToyTruth

VERSION = 1
"""Raised when a definition changes: older files are computed again."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "beats": ("beat_f_measure", "beat_cmlt", "beat_amlt", "beats_found"),
    "chroma": ("chroma_cosine",),
    "key": ("key_score",),
    "onsets": ("onset_f1", "onset_f1_reference"),
    "truth": TOY_METRICS,
}
"""Group of columns -> its scores."""


def toy_truth_of(clip: MusicClip) -> ToyTruth | None:
    """What is known of the clip's song; None for songs of people."""
    path = Path(clip.segment.song.vocals).parent / TRUTH_FILE
    return ToyTruth.load(path) if path.is_file() else None


class ClipScores:
    """Scores of one system's clips, by segment; computed once and kept.

    Args:
        path: JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores: dict[str, dict[str, float]] = {}
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["version"] == VERSION:
                    self.scores = content["clips"]
            except (ValueError, KeyError, TypeError) as error:
                raise RequestError(f"{path} is damaged ({error}); delete it to compute it again") from error

    def add(self, clip: MusicClip, samples: npt.NDArray[np.float32]) -> None:
        """Score a clip unless it is there already."""
        if clip.segment.key in self.scores:
            return
        found = dict(coherence_scores(clip.vocal, clip.accompaniment, samples, clip.acoustic_hz))
        truth = toy_truth_of(clip)
        if truth is not None:
            found |= toy_truth_scores(samples, clip.acoustic_hz, truth, clip.segment.start_s)
        self.scores[clip.segment.key] = found

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_json(self.path, {"version": VERSION, "clips": self.scores})

    def column(self, name: str, segments: Sequence[Segment]) -> list[float] | None:
        """One score of every segment, in order; None where it is not defined for these songs."""
        values = [self.scores[segment.key].get(name) for segment in segments]
        found = [value for value in values if value is not None]
        return found if len(found) == len(values) else None
