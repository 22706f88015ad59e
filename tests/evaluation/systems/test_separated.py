"""Separated vocals: cut where the segment lies, and part of what a row is kept under."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_music import CLIP_S

from hafm_lightning.audio import read_audio
from hafm_lightning.evaluation.segments import (
    MusicClip,
)
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.songs.separation import SeparationSettings


class Everything:
    """A separator that takes the whole mixture for the vocal."""

    identity = {"kind": "everything"}
    rate_hz = 44100
    margin_s = 1.0

    def __init__(self) -> None:
        self.firsts: list[int] = []

    def separate(self, mixture: np.ndarray, first: int = 0) -> Any:
        self.firsts.append(first)
        return SimpleNamespace(vocals=mixture)


def test_separation_is_cut_where_the_segment_lies(clips: list[MusicClip], monkeypatch: pytest.MonkeyPatch) -> None:
    separator = Everything()
    monkeypatch.setattr("hafm_lightning.evaluation.systems.separated.load_separator", lambda _: separator)
    vocals = SeparatedVocals("", SeparationSettings(model="x.onnx"))
    for clip in clips:
        segment = clip.segment
        expected = read_audio(segment.song.mixture, start_s=segment.start_s, duration_s=CLIP_S)
        np.testing.assert_array_equal(vocals.read(segment).samples, expected.samples)
    assert all(first % 44100 == 0 for first in separator.firsts)
