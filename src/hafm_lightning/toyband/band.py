"""The toy band's instruments: bass, chords and drums follow the voice.

Bass, kick and chords play with the syllables: the bass plays the chord's root for the length of the syllable, chords
are loud when they change and soft otherwise. Snare and hat play the beat while the voice sings. In the rest after a
phrase only the drums play, a fill of sixteenths. Tones are sums of decaying partials, drums are swept sines and
filtered noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hafm_lightning.audio import Samples
from hafm_lightning.toyband.score import BEATS_PER_BAR, Chord, Note, ToyTruth
from hafm_lightning.toyband.voice import Signal, band_pass

LOWEST_BASS_MIDI = 38
LOWEST_CHORD_MIDI = 60  # all tones of chords are in the octave above


@dataclass(frozen=True)
class Timbre:
    """A tone as a sum of partials."""

    partials: tuple[float, ...]  # amplitude of each harmonic, from the fundamental on
    decay_s: float  # time in which the fundamental falls to 1/e; infinite for a sustained tone
    damping: float  # harmonic `k` decays `k ** damping` times as fast
    attack_s: float  # time to full level
    level: float  # amplitude of the fundamental


CHORD_SETTINGS = {
    "piano": Timbre((1.0, 0.55, 0.32, 0.22, 0.13, 0.09, 0.05, 0.03), 0.9, 0.6, 0.003, 0.050),
    "guitar": Timbre((0.8, 0.9, 0.6, 0.25, 0.2, 0.25, 0.15, 0.08, 0.05, 0.04), 0.45, 0.8, 0.002, 0.060),
    "organ": Timbre((1.0, 0.8, 0.35, 0.4, 0.0, 0.2, 0.0, 0.15), np.inf, 0.0, 0.015, 0.030),
}
BASS_SETTINGS = {
    "finger": Timbre((1.0, 0.7, 0.45, 0.3, 0.15, 0.08), 0.7, 0.5, 0.006, 0.075),
    "synth": Timbre((1.0, 0.6, 0.5, 0.4, 0.35, 0.3, 0.22, 0.15, 0.1, 0.08), 1.5, 0.3, 0.004, 0.060),
}
_KICK_LEVEL, _SNARE_LEVEL, _HAT_LEVEL, _TOM_LEVEL = 0.28, 0.17, 0.04, 0.24
_SOFT_STRIKE = 0.6
_RELEASE_S = 0.03
_PANORAMA = (-0.35, 0.0, 0.35)  # panning of a chord's three tones, -1 for left to 1 for right


def play(truth: ToyTruth, rate_hz: int) -> dict[str, Samples]:
    """The accompaniment of a song: ``"bass"``, ``"other"`` (the chords) and ``"drums"``, each float32 ``[2, L]``."""
    length = round(truth.duration_s * rate_hz)
    stems = {name: np.zeros((2, length), dtype=np.float32) for name in ("bass", "other", "drums")}
    strikes = [(note, chord) for note in truth.notes if (chord := truth.chord_at(note.start_s)) is not None]
    _play_bass(stems["bass"], truth, strikes, rate_hz)
    _play_chords(stems["other"], truth, strikes, rate_hz)
    _play_drums(stems["drums"], truth, rate_hz)
    return stems


def _play_bass(stem: Samples, truth: ToyTruth, strikes: list[tuple[Note, Chord]], rate_hz: int) -> None:
    timbre = BASS_SETTINGS[truth.bass_timbre]
    longest_s = max((note.end_s - note.start_s for note, _ in strikes), default=0.0)
    for note, chord in strikes:
        tone = _tone(_midi_above(LOWEST_BASS_MIDI, chord.root), longest_s, timbre, rate_hz)
        sound = _released(tone, note.end_s - note.start_s, rate_hz)
        _add(stem, note.velocity * sound, note.start_s, 0.0, rate_hz)


def _play_chords(stem: Samples, truth: ToyTruth, strikes: list[tuple[Note, Chord]], rate_hz: int) -> None:
    timbre = CHORD_SETTINGS[truth.chord_timbre]
    ends_s = [note.start_s for note, _ in strikes[1:]] + [truth.duration_s]
    # In a rest the last chord continues for half a beat.
    rest_s = truth.beat_s / 2
    lengths_s = [min(end_s, n.end_s + rest_s) - n.start_s for (n, _), end_s in zip(strikes, ends_s, strict=True)]
    longest_s = max(lengths_s, default=0.0)
    for (note, chord), length_s in zip(strikes, lengths_s, strict=True):
        level = note.velocity * (1.0 if note.start_s == chord.start_s else _SOFT_STRIKE)
        for pitch_class, panning in zip(chord.pitch_classes, _PANORAMA, strict=True):
            tone = _tone(_midi_above(LOWEST_CHORD_MIDI, pitch_class), longest_s, timbre, rate_hz)
            _add(stem, level * _released(tone, length_s, rate_hz), note.start_s, panning, rate_hz)


def _play_drums(stem: Samples, truth: ToyTruth, rate_hz: int) -> None:
    draw = np.random.default_rng(np.random.SeedSequence([truth.seed, 2]))
    kick = _drum(0.25, rate_hz, 46.0, 110.0, 0.08)
    snare = 0.45 * _drum(0.2, rate_hz, 185.0, 60.0, 0.05) + 0.8 * _noise(draw, 0.2, rate_hz, 1200.0, 9000.0, 0.06)
    hat = _noise(draw, 0.08, rate_hz, 7000.0, 14000.0, 0.018)
    toms = [_drum(0.25, rate_hz, pitch_hz, 50.0, 0.09) for pitch_hz in (170.0, 120.0, 85.0)]
    for note in truth.notes:
        _add(stem, _KICK_LEVEL * note.velocity * kick, note.start_s, 0.0, rate_hz)
    for number, beat_s in enumerate(truth.beats_s):
        if any(fill.start_s - 1e-3 < beat_s < fill.end_s - 1e-3 for fill in truth.fills):
            continue
        _add(stem, _HAT_LEVEL * hat, beat_s, 0.3, rate_hz)
        if number % BEATS_PER_BAR in (1, 3):
            _add(stem, _SNARE_LEVEL * snare, beat_s, 0.0, rate_hz)
    for fill in truth.fills:
        hits = max(round((fill.end_s - fill.start_s) / (truth.beat_s / 4)), 1)
        for hit in range(hits):
            progress = hit / hits
            sound = _SNARE_LEVEL * snare if hit % 2 == 0 else _TOM_LEVEL * toms[int(3 * progress)]
            time_s = fill.start_s + hit * truth.beat_s / 4
            _add(stem, (0.6 + 0.4 * progress) * sound, time_s, 0.4 * (progress - 0.5), rate_hz)


def _midi_above(lowest: int, pitch_class: int) -> int:
    """The note of a pitch class in the octave from ``lowest`` on."""
    return lowest + (pitch_class - lowest) % 12


@lru_cache(maxsize=32)
def _tone(midi: int, length_s: float, timbre: Timbre, rate_hz: int) -> Signal:
    """A note of a timbre, ``[n]``."""
    time_s = np.arange(round(length_s * rate_hz)) / rate_hz
    turn = np.exp(2j * np.pi * 440.0 * 2.0 ** ((midi - 69) / 12) * time_s)
    harmonic = turn.copy()
    sound = np.zeros(len(time_s))
    for number, amplitude in enumerate(timbre.partials, start=1):
        if amplitude:
            decay = np.exp(-time_s * (number**timbre.damping / timbre.decay_s))
            sound += amplitude * decay * harmonic.imag
        harmonic *= turn
    sound *= timbre.level * np.clip(time_s / timbre.attack_s, 0.0, 1.0)
    return sound


def _released(sound: Signal, length_s: float, rate_hz: int) -> Signal:
    """The first ``length_s`` of a sound, faded out at the end."""
    cut = sound[: round(length_s * rate_hz)].copy()
    fade = min(round(_RELEASE_S * rate_hz), len(cut))
    if fade:
        cut[-fade:] *= np.linspace(1.0, 0.0, fade)
    return cut


def _drum(length_s: float, rate_hz: int, pitch_hz: float, sweep_hz: float, decay_s: float) -> Signal:
    """A drum head: a sine that falls from ``pitch_hz + sweep_hz`` to ``pitch_hz``, with a click at the start."""
    time_s = np.arange(round(length_s * rate_hz)) / rate_hz
    phase = np.cumsum(pitch_hz + sweep_hz * np.exp(-time_s / 0.02)) / rate_hz
    body = np.sin(2 * np.pi * phase) * np.exp(-time_s / decay_s)
    click = 0.4 * np.sin(2 * np.pi * 1800.0 * time_s) * np.exp(-time_s / 0.0015)
    return np.asarray((body + click) * np.clip((length_s - time_s) / 0.03, 0.0, 1.0))


def _noise(
    draw: np.random.Generator, length_s: float, rate_hz: int, low_hz: float, high_hz: float, decay_s: float
) -> Signal:
    """A decaying burst of noise in a band, of about unit peak."""
    time_s = np.arange(round(length_s * rate_hz)) / rate_hz
    sound = band_pass(draw.standard_normal(len(time_s)), low_hz, high_hz, rate_hz) * np.exp(-time_s / decay_s)
    sound *= np.clip((length_s - time_s) / 0.01, 0.0, 1.0)
    return np.asarray(sound / np.abs(sound).max())


def _add(stem: Samples, sound: Signal, start_s: float, panning: float, rate_hz: int) -> None:
    """Add a sound to ``stem [2, L]`` at constant power; the part after the stem's end is dropped."""
    begin = round(start_s * rate_hz)
    cut = sound[: max(stem.shape[1] - begin, 0)]
    angle = (panning + 1) * np.pi / 4
    stem[0, begin : begin + len(cut)] += np.sqrt(2) * np.cos(angle) * cut
    stem[1, begin : begin + len(cut)] += np.sqrt(2) * np.sin(angle) * cut
