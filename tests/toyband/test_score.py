"""The score: entropies of chords and rhythms given the voice or the past, and the stated limits."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.toyband.score import ToyTruth, compose


def conditional_entropy_bits(pairs: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Plug-in estimate of H(second | first)."""
    pairs = list(pairs)
    joint, given = Counter(pairs), Counter(first for first, _ in pairs)
    return -sum(n / len(pairs) * math.log2(n / given[first]) for (first, _), n in joint.items())


@pytest.fixture(scope="module")
def scores() -> list[ToyTruth]:
    return [compose(seed, 30.0) for seed in range(400)]


def harmony(truth: ToyTruth) -> list[tuple[int, str]]:
    return [(chord.root, chord.quality) for chord in truth.chords]


def rhythms(truth: ToyTruth) -> list[tuple[int, ...]]:
    """Eighths of each full chord window on which syllables start."""
    windows = []
    for chord in truth.chords:
        if math.isclose(chord.end_s - chord.start_s, 2 * truth.beat_s, abs_tol=1e-3):
            starts = [n.start_s for n in truth.notes if chord.start_s <= n.start_s < chord.end_s - 1e-3]
            windows.append(tuple(round((s - chord.start_s) / truth.beat_s * 2) for s in starts))
    return windows


def test_who_hears_the_voice_knows_the_chord(scores):
    heard = []
    for truth in scores:
        pitches = {note.start_s: note.midi % 12 for note in truth.notes}
        heard += [(pitches[chord.start_s], (chord.root, chord.quality)) for chord in truth.chords[:-1]]
    assert conditional_entropy_bits(heard) == 0.0
    assert len({chord for _, chord in heard}) == 12


def test_most_of_what_is_sung_lies_on_the_root_and_all_of_it_in_the_chord(scores):
    on_root = total = 0.0
    for truth in scores[:50]:
        for note in truth.notes:
            chord = truth.chord_at(note.start_s)
            assert note.midi % 12 in chord.pitch_classes
            total += note.end_s - note.start_s
            on_root += (note.end_s - note.start_s) * (note.midi % 12 == chord.root)
    assert on_root / total > 0.8


def test_who_hears_only_the_chords_so_far_knows_little_more_than_the_key(scores):
    one, two = [], []
    for truth in scores:
        chords = harmony(truth)
        one += [((truth.key, a), b) for a, b in pairwise(chords)]
        two += [((truth.key, a, b), c) for a, b, c in zip(chords, chords[1:], chords[2:], strict=False)]
    assert conditional_entropy_bits(one) > 2.45
    assert conditional_entropy_bits(two) > 2.3  # biased down by the few counts of each of the 144 contexts


def test_rhythm_does_not_follow_from_the_rhythm_before(scores):
    pairs = [pair for truth in scores for pair in zip(rhythms(truth), rhythms(truth)[1:], strict=False)]
    assert conditional_entropy_bits(pairs) > 2.4
    assert all(window and window[0] == 0 for pair in pairs for window in pair)


def test_score_is_within_its_stated_limits(scores):
    for truth in scores:
        assert 80 <= truth.tempo_bpm <= 130
        assert all(55 <= note.midi <= 72 and note.end_s <= truth.duration_s for note in truth.notes)
        assert all(a.end_s <= b.start_s for a, b in zip(truth.notes, truth.notes[1:], strict=False))
        assert all(a.end_s == b.start_s for a, b in zip(truth.chords, truth.chords[1:], strict=False))
        assert all(chord.root in scale_of(truth.key) for chord in truth.chords)
        assert np.allclose(np.diff(truth.beats_s), 60 / truth.tempo_bpm, atol=2e-6)
        for fill in truth.fills:
            assert not any(
                note.start_s < fill.end_s - 1e-6 and note.end_s > fill.start_s + 1e-6 for note in truth.notes
            )
    rests = sum(f.end_s - f.start_s for truth in scores for f in truth.fills) / (30 * len(scores))
    assert 0.1 < rests < 0.3


def scale_of(key: str) -> set[int]:
    names = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
    tonic, mode = key.split()
    steps = (0, 2, 4, 5, 7, 9, 11) if mode == "major" else (0, 2, 3, 5, 7, 8, 10)
    return {(names.index(tonic) + step) % 12 for step in steps}


def test_truth_survives_its_file(tmp_path):
    truth = compose(3, 9.5)
    (tmp_path / "truth.json").write_text(json.dumps(asdict(truth)))
    assert ToyTruth.load(tmp_path / "truth.json") == truth
    (tmp_path / "truth.json").write_text('{"seed": 3}')
    with pytest.raises(RequestError, match=r"truth\.json: not a truth file"):
        ToyTruth.load(tmp_path / "truth.json")
