"""The toy band's score: the notes, chords and fills of a song, drawn from a seed.

The accompaniment depends on the voice alone:

* **Harmony.** Every two beats (a window) the voice moves to a newly drawn pitch, and the chord is the key's triad on
  it. So the voice determines the chord, while the earlier chords determine only the key (the next chord has 2.5 bits
  of entropy, against 2.6 for six equally likely ones). Some short notes are on other tones of the chord.
* **Rhythm.** In every window the syllables follow a newly drawn pattern; bass, kick and chords play with them.
* **Form.** Phrases last 2 to 5 windows and end in a rest of the voice, with a drum fill.

Keys are a tritone apart (C and F sharp, and their relative minors). Their triads have no root in common, so that a
pitch means the same chord in every song, and a model does not have to find the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hafm_lightning import limits
from hafm_lightning.errors import RequestError
from hafm_lightning.untrusted import checked, read_json

Quality = Literal["major", "minor"]

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
LOWEST_MIDI, HIGHEST_MIDI = 55, 72
"""The voice's range, G3 to C5: one and a half octaves."""
BEATS_PER_BAR = 4
SINGERS = ("alto", "mezzo", "tenor", "countertenor")
CHORD_TIMBRES = ("piano", "guitar", "organ")
BASS_TIMBRES = ("finger", "synth")
VOWELS = ("a", "e", "i", "o", "u")
CONSONANTS = ("t", "k", "s", "sh", "m")

_TRIADS: dict[int, Quality] = {0: "major", 2: "minor", 4: "minor", 5: "major", 7: "major", 9: "minor"}
"""Semitones above the major tonic -> quality of the key's triad there (the diminished one is left out)."""
_KEYS: tuple[tuple[int, Quality], ...] = ((0, "major"), (9, "minor"), (6, "major"), (3, "minor"))
_SLOTS = 4  # eighth notes in a window of two beats
_PATTERNS = ((0,), (0, 2), (0, 3), (0, 1, 2), (0, 2, 3), (0, 1, 3))  # eighths on which syllables start
_LAST_PATTERNS = ((0,), (0, 1))  # of a phrase's last window, whose second beat is a rest
_TEMPO_BPM = (80.0, 130.0)
_SHORTEST_NOTE_S = 0.15


@dataclass(frozen=True)
class Note:
    """One sung syllable; its vowel starts at ``start_s``, its consonant just before."""

    start_s: float
    end_s: float
    midi: int
    vowel: str
    consonant: str
    velocity: float


@dataclass(frozen=True)
class Chord:
    """A triad; ``root`` is a pitch class, 0 for C."""

    start_s: float
    end_s: float
    root: int
    quality: Quality

    @property
    def pitch_classes(self) -> tuple[int, int, int]:
        """Root, third and fifth."""
        third = 4 if self.quality == "major" else 3
        return self.root, (self.root + third) % 12, (self.root + 7) % 12


@dataclass(frozen=True)
class Span:
    """A stretch of time."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class ToyTruth:
    """A song of the toy band as it was composed; stored as ``truth.json`` beside its sound."""

    seed: int  # determines the song, together with `duration_s`
    duration_s: float  # length of the song
    tempo_bpm: float  # beats a minute
    key: str  # tonic and mode, such as `"F# major"`
    singer: str  # one of `SINGERS`
    chord_timbre: str  # one of `CHORD_TIMBRES`
    bass_timbre: str  # one of `BASS_TIMBRES`
    beats_s: tuple[float, ...]  # the first and every `BEATS_PER_BAR`-th after it start a bar
    chords: tuple[Chord, ...]  # without gaps from the first beat on
    notes: tuple[Note, ...]  # the sung notes
    fills: tuple[Span, ...]  # rests at phrase ends, which the drums answer

    @property
    def beat_s(self) -> float:
        """Seconds from beat to beat."""
        return 60.0 / self.tempo_bpm

    def chord_at(self, time_s: float) -> Chord | None:
        """The chord that sounds at a time; None before the first."""
        return next((chord for chord in self.chords if chord.start_s <= time_s < chord.end_s), None)

    @classmethod
    def load(cls, path: Path) -> ToyTruth:
        """Read ``truth.json``; RequestError if it is missing or is not a truth file of the toy band."""
        where, advice = f"{path}: not a truth file of the toy band, or it", "make the song again"
        content = read_json(path, what="a truth file of the toy band", advice=advice)
        truth = checked(content, cls, where, advice)
        if not (0 < truth.duration_s <= limits.current().audio_seconds and truth.tempo_bpm > 0):
            raise RequestError(f"{where} is damaged ({truth.duration_s} s, {truth.tempo_bpm} bpm); {advice}")
        spans = [(it.start_s, it.end_s) for it in truth.chords]
        spans += [(it.start_s, it.end_s) for it in truth.notes] + [(it.start_s, it.end_s) for it in truth.fills]
        if any(start_s > end_s for start_s, end_s in spans) or any(not 0 <= it.root < 12 for it in truth.chords):
            raise RequestError(f"{where} is damaged (a part ends before it starts, or a wrong root); {advice}")
        return truth


def compose(seed: int, duration_s: float) -> ToyTruth:
    """The score of a seed (0 or more); ValueError under 4 s, which is too short for a phrase."""
    if not duration_s >= 4:
        raise ValueError(f"a song needs at least 4 s, got {duration_s} s")
    draw = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    tempo_bpm = float(np.round(draw.uniform(*_TEMPO_BPM), 2))
    beat_s = 60.0 / tempo_bpm
    first_beat_s = float(np.round(draw.uniform(0.3, 0.3 + beat_s), 3))
    tonic, mode = _KEYS[draw.integers(len(_KEYS))]
    key = f"{PITCH_CLASSES[tonic]} {mode}"
    singer, chords_by, bass_by = (kind[draw.integers(len(kind))] for kind in (SINGERS, CHORD_TIMBRES, BASS_TIMBRES))
    beats = range(math.ceil((duration_s - first_beat_s) / beat_s))
    beats_s = tuple(_rounded(first_beat_s + beat * beat_s) for beat in beats)
    melody = _melody(draw, tonic, mode, first_beat_s, beat_s, duration_s)
    return ToyTruth(seed, float(duration_s), tempo_bpm, key, singer, chords_by, bass_by, beats_s, *melody)


def _melody(
    draw: np.random.Generator, tonic: int, mode: Quality, first_beat_s: float, beat_s: float, duration_s: float
) -> tuple[tuple[Chord, ...], tuple[Note, ...], tuple[Span, ...]]:
    """Chords, notes and fills of a song."""
    major_tonic = tonic if mode == "major" else (tonic + 3) % 12
    degrees = list(_TRIADS)
    # The tonic is drawn somewhat more often, to make the key clear.
    weights = np.array([1.6 if (major_tonic + degree) % 12 == tonic else 1.0 for degree in degrees])
    slot_s = beat_s / 2
    chords: list[Chord] = []
    notes: list[Note] = []
    fills: list[Span] = []
    midi = int(draw.integers(LOWEST_MIDI + 5, HIGHEST_MIDI - 4))
    start_s = first_beat_s
    while start_s < duration_s:
        windows = int(draw.integers(2, 6))
        for window in range(windows):
            last = window == windows - 1
            degree = degrees[draw.choice(len(degrees), p=weights / weights.sum())]
            root = (major_tonic + degree) % 12
            midi = _nearest(root, midi)
            slots = _SLOTS + (_SLOTS if last and draw.random() < 0.3 else 0)
            end_s = start_s + slots * slot_s
            chord = Chord(_rounded(start_s), _rounded(min(end_s, duration_s)), root, _TRIADS[degree])
            patterns = _LAST_PATTERNS if last else _PATTERNS
            pattern = patterns[draw.integers(len(patterns))]
            sung_slots = _SLOTS // 2 if last else _SLOTS
            for slot, ends in zip(pattern, (*pattern[1:], sung_slots), strict=True):
                pitch = midi
                if slot != 0 and draw.random() >= 0.75:  # the third or the fifth
                    pitch = _nearest(chord.pitch_classes[draw.integers(1, 3)], midi)
                vowel, consonant = (kind[draw.integers(len(kind))] for kind in (VOWELS, CONSONANTS))
                velocity = float(np.round((1.0 if slot == 0 else 0.85) * draw.uniform(0.9, 1.0), 3))
                from_s, to_s = _rounded(start_s + slot * slot_s), _rounded(min(start_s + ends * slot_s, duration_s))
                if to_s - from_s >= _SHORTEST_NOTE_S:
                    notes.append(Note(from_s, to_s, pitch, vowel, consonant, velocity))
            chords.append(chord)
            rest_s = start_s + sung_slots * slot_s
            if last and rest_s < duration_s:
                fills.append(Span(_rounded(rest_s), chord.end_s))
            start_s = end_s
            if start_s >= duration_s:
                break
    return tuple(chords), tuple(notes), tuple(fills)


def _nearest(pitch_class: int, midi: int) -> int:
    """The note of a pitch class in the voice's range that is nearest to ``midi``."""
    inside = range(LOWEST_MIDI, HIGHEST_MIDI + 1)
    return min((note for note in inside if note % 12 == pitch_class), key=lambda note: (abs(note - midi), note))


def _rounded(time_s: float) -> float:
    """Whole microseconds: short in JSON, and equal after reading it again."""
    return round(time_s, 6)
