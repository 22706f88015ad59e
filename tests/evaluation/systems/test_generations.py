"""Results on disk: made once, continued, and told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_music import CLIP_S, TinyMusic, tiny_selection

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import (
    ClipReader,
    MusicClip,
    SelectedClips,
    load_clip,
)
from hafm_lightning.evaluation.systems.base import (
    GroundTruth,
    Outcome,
    System,
)
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.processes.pool import SerialPool


class Counting(GroundTruth):
    def __init__(self, identity: str = "a") -> None:
        super().__init__()
        self.identity = identity
        self.played = 0

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        self.played += len(clips)
        return [replace(outcome, seconds=2.0) for outcome in super().play(clips)]


def test_generations_are_kept_and_a_stopped_run_continues(music: TinyMusic, tmp_path: Path) -> None:
    selection = tiny_selection(music)
    segments = selection.segments

    def play(system: System, upto: int) -> Generations:
        made = Generations(tmp_path, system)
        clips = SelectedClips(replace(selection, segments=segments[:upto]), ClipReader.of(music.tokenizers))
        made.make(clips, 2, SerialPool())
        return made

    system = Counting()
    play(system, 3)
    made = play(system, 6)
    assert system.played == 6
    clip = load_clip(segments[4], music.tokenizers)
    np.testing.assert_array_equal(made.outcome(segments[4]).samples, clip.accompaniment)
    assert made.outcome(segments[4]).seconds == 2.0
    (made.folder / made.entries[segments[4].key].file).unlink()
    play(system, 6)
    assert system.played == 7
    longer = replace(segments[0], duration_s=CLIP_S + 0.04)
    assert Generations(tmp_path, system).missing([longer]) == [longer]
    other = Counting("b")
    play(other, 6)
    assert other.played == 6
    (made.folder / "index.json").write_text("{}")
    with pytest.raises(RequestError, match="damaged"):
        Generations(tmp_path, system)


def test_folders_of_older_versions_still_serve(music: TinyMusic, tmp_path: Path) -> None:
    """Their index has no batch size and no number of processes."""
    selection = tiny_selection(music)
    clips = SelectedClips(selection, ClipReader.of(music.tokenizers))
    system = Counting()
    made = Generations(tmp_path, system)
    made.make(clips, 2, SerialPool())
    index = made.folder / "index.json"
    content = json.loads(index.read_text())
    for entry in content["clips"].values():
        assert entry.pop("together") == 2
        assert entry.pop("processes") == 1
    index.write_text(json.dumps(content))
    again = Generations(tmp_path, system)
    assert again.missing(selection.segments) == []
    assert again.entries[selection.segments[0].key].together == 0
    assert again.outcome(selection.segments[0]).seconds == 2.0
