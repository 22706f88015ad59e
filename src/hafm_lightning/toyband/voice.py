"""The toy band's singer: glottal pulses through formants.

A syllable is a band-limited glottal pulse train (the derivative of a Rosenberg flow pulse, read from a table along the
phase of the pitch curve) with aspiration noise, filtered by eight resonances in cascade. The resonances glide from a
neutral tube to the vowel; consonants are bursts of noise (or a hum) just before it. The pitch curve scoops into notes,
slides between them and has a vibrato that fades in. In rests the singer breathes.

Source of the pulse: A. E. Rosenberg, "Effect of glottal pulse shape on the quality of natural vowels", 1971.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hafm_lightning.toyband.score import Note, ToyTruth

Signal = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Singer:
    """The properties of a voice."""

    formant_scale: float  # factor on the frequencies of all resonances
    open_quotient: float  # share of a period during which the glottis is open; more is softer
    breath: float  # aspiration noise, relative to the voiced source
    vibrato_hz: float  # vibrato rate
    vibrato_cents: float  # vibrato depth, to one side


SINGER_SETTINGS = {
    "alto": Singer(1.05, 0.72, 0.020, 5.4, 28.0),
    "mezzo": Singer(1.14, 0.78, 0.028, 5.8, 32.0),
    "tenor": Singer(0.95, 0.68, 0.016, 5.2, 30.0),
    "countertenor": Singer(1.0, 0.76, 0.022, 5.6, 24.0),
}

FORMANTS_HZ = {
    "a": (700.0, 1180.0, 2550.0, 2950.0, 3400.0),
    "e": (450.0, 1900.0, 2500.0, 3000.0, 3450.0),
    "i": (310.0, 2250.0, 2750.0, 3100.0, 3500.0),
    "o": (440.0, 800.0, 2550.0, 2900.0, 3350.0),
    "u": (330.0, 700.0, 2450.0, 2850.0, 3300.0),
}
"""Resonances of the five vowels; the upper three are close, as in trained voices."""
_NEUTRAL_HZ = (500.0, 1500.0, 2500.0, 3000.0, 3450.0)  # the neutral tube, between consonant and vowel
_HUM_HZ = (260.0, 1050.0, 2200.0, 3000.0, 3500.0)  # the closed mouth of an "m"
_UPPER_HZ = (4600.0, 5600.0, 6600.0)  # of all vowels; without them the cascade's level falls too fast
_BANDWIDTHS_HZ = (100.0, 120.0, 160.0, 200.0, 250.0, 400.0, 500.0, 600.0)

_ATTACK_S, _RELEASE_S = 0.015, 0.045
_CLOSURE_S = 0.035  # the voice stops this long before the consonant of the next syllable
_GLIDE_S = 0.045
_TAIL_S = 0.03
_TABLE_SIZE = 2048
_HIGHEST_HARMONIC_HZ = 9000.0
_LEVEL = 0.1  # root mean square of a syllable of velocity 1


@dataclass(frozen=True)
class _Consonant:
    """A burst of noise in a band, which ends ``overlap_s`` after the vowel has started."""

    low_hz: float
    high_hz: float
    duration_s: float
    overlap_s: float
    level: float


_BURSTS = {
    "t": _Consonant(3000.0, 9000.0, 0.022, 0.010, 0.070),
    "k": _Consonant(1300.0, 3800.0, 0.028, 0.012, 0.070),
    "s": _Consonant(5000.0, 11000.0, 0.075, 0.012, 0.035),
    "sh": _Consonant(2200.0, 6000.0, 0.075, 0.012, 0.035),
}
_HUM_S, _HUM_LEVEL = 0.06, 0.35
_BREATH = _Consonant(700.0, 7000.0, 0.30, -0.03, 0.006)


def sing(truth: ToyTruth, rate_hz: int) -> npt.NDArray[np.float32]:
    """The vocal of a song, float32 ``[L]``, at a level that leaves headroom for the band."""
    draw = np.random.default_rng(np.random.SeedSequence([truth.seed, 1]))
    length = round(truth.duration_s * rate_hz)
    singer = SINGER_SETTINGS[truth.singer]
    frequency_hz = pitch_curve_hz(truth, draw, rate_hz)
    phase = np.cumsum(frequency_hz / rate_hz)
    noise = draw.standard_normal(length)
    voice = np.zeros(length)
    for note, following in zip(truth.notes, (*truth.notes[1:], None), strict=True):
        gap_s = np.inf if following is None else following.start_s - note.end_s
        hummed_next = following is not None and following.consonant == "m" and gap_s < 1e-3
        # The voice stops before a consonant, except a hum.
        end_s = note.end_s - (_HUM_S if hummed_next else _CLOSURE_S if gap_s < 0.1 else 0.0)
        _add_syllable(voice, replace(note, end_s=end_s), singer, frequency_hz, phase, noise, rate_hz)
        if note.consonant in _BURSTS:
            _add_noise(voice, noise, note.start_s, _BURSTS[note.consonant], note.velocity, rate_hz)
    for fill in truth.fills:
        if fill.end_s - fill.start_s > _BREATH.duration_s + 0.1 and fill.end_s < truth.duration_s - 0.1:
            _add_noise(voice, noise, fill.end_s, _BREATH, 1.0, rate_hz)
    return voice.astype(np.float32)


def pitch_curve_hz(truth: ToyTruth, draw: np.random.Generator, rate_hz: int) -> Signal:
    """Fundamental frequency at every sample, ``[L]``: notes, slides, scoops, vibrato and a slow unsteadiness."""
    control_hz = 200
    control_s = np.arange(round(truth.duration_s * control_hz) + 1) / control_hz
    singer = SINGER_SETTINGS[truth.singer]
    starts = np.array([note.start_s for note in truth.notes])
    midi = np.array([note.midi for note in truth.notes], dtype=np.float64)
    # The slide to a note is centred a little before it, so that the note is in tune when its vowel starts.
    current = np.clip(np.searchsorted(starts - 0.02, control_s, side="right") - 1, 0, None)
    slide = np.hanning(round(0.06 * control_hz) + 2)[1:-1]
    padded = np.pad(midi[current], (len(slide) // 2, len(slide) - 1 - len(slide) // 2), mode="edge")
    curve = np.convolve(padded, slide / slide.sum(), mode="valid")
    into_s = control_s - starts[current]
    curve -= np.where(into_s >= 0, 0.6 * np.exp(-np.maximum(into_s, 0) / 0.025), 0.0)  # scoop from below
    fade = np.clip((into_s - 0.15) / 0.2, 0.0, 1.0)
    vibrato_phase = 2 * np.pi * (singer.vibrato_hz * control_s + draw.random())
    curve += singer.vibrato_cents / 100 * fade * np.sin(vibrato_phase)
    unsteady = np.convolve(draw.standard_normal(len(control_s) + 39), np.hanning(40) / 20, mode="valid")
    curve += 0.12 * unsteady
    sample_s = np.arange(round(truth.duration_s * rate_hz)) / rate_hz
    return np.asarray(np.interp(sample_s, control_s, 440.0 * 2.0 ** ((curve - 69) / 12)))


@lru_cache(maxsize=256)
def _glottal_table(open_quotient: float, harmonics: int, fundamental_hz: float) -> Signal:
    """One period of the pulse's derivative, of unit power; the first sample is repeated."""
    time = np.arange(4 * _TABLE_SIZE) / (4 * _TABLE_SIZE)
    rise, fall = open_quotient * 0.67, open_quotient * 0.33
    flow = np.where(
        time < rise,
        0.5 * (1 - np.cos(np.pi * time / rise)),
        np.where(time < rise + fall, np.cos(np.pi * (time - rise) / (2 * fall)), 0.0),
    )
    number = np.arange(1, harmonics + 1)
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : harmonics + 1] = np.fft.rfft(flow)[1 : harmonics + 1] * 1j * number
    # Soft phonation: the vocal folds round off the closure, so the source falls faster above about 1.5 kHz.
    spectrum[1 : harmonics + 1] /= np.sqrt(1 + (number * fundamental_hz / 1500.0) ** 2)
    table = np.fft.irfft(spectrum, _TABLE_SIZE)
    table /= np.sqrt(np.mean(table**2))
    return np.append(table, table[0])


def _resonator_sections(frequencies_hz: tuple[float, ...], rate_hz: int) -> Signal:
    """Second-order sections of resonances in cascade, each with unit gain at 0 Hz: ``[8, 6]``."""
    sections = np.zeros((len(_BANDWIDTHS_HZ), 6))
    for row, frequency_hz, bandwidth_hz in zip(sections, frequencies_hz + _UPPER_HZ, _BANDWIDTHS_HZ, strict=True):
        radius = np.exp(-np.pi * bandwidth_hz / rate_hz)
        first, second = -2 * radius * np.cos(2 * np.pi * frequency_hz / rate_hz), radius**2
        row[:] = 1 + first + second, 0.0, 0.0, 1.0, first, second
    return sections


def vowel_formants_hz(vowel: str, singer: Singer, fundamental_hz: float) -> tuple[float, ...]:
    """A singer's resonances for a vowel at a pitch: the first is never below the fundamental."""
    first, *others = (frequency * singer.formant_scale for frequency in FORMANTS_HZ[vowel])
    return (max(first, 1.1 * fundamental_hz), *others)


def _add_syllable(
    voice: Signal, note: Note, singer: Singer, frequency_hz: Signal, phase: Signal, noise: Signal, rate_hz: int
) -> None:
    """Add the voiced part of one syllable, from its hum if it has one to the decay after its end."""
    from scipy.signal import sosfilt

    hum_s = _HUM_S if note.consonant == "m" else 0.0
    begin = max(round((note.start_s - hum_s) * rate_hz), 0)
    end = min(round((note.end_s + _TAIL_S) * rate_hz), len(voice))
    time_s = np.arange(begin, end) / rate_hz - note.start_s
    highest_hz = float(frequency_hz[begin:end].max())
    harmonics = int(_HIGHEST_HARMONIC_HZ / highest_hz)
    pitch_hz = 440.0 * 2.0 ** ((note.midi - 69) / 12)
    table = _glottal_table(singer.open_quotient, harmonics, pitch_hz)
    cycle = phase[begin:end] % 1.0
    position = cycle * _TABLE_SIZE
    index = position.astype(np.int64)
    source = table[index] + (position - index) * (table[index + 1] - table[index])
    # Air is turbulent while the glottis is open.
    source += singer.breath * noise[begin:end] * np.where(cycle < singer.open_quotient, 12.0, 4.0) / 8.0

    formants_hz = vowel_formants_hz(note.vowel, singer, pitch_hz)
    vowel = sosfilt(_resonator_sections(formants_hz, rate_hz), source)
    glide = round((hum_s + _GLIDE_S) * rate_hz)
    before_hz = _HUM_HZ if hum_s else tuple((2 * f + n) / 3 for f, n in zip(formants_hz, _NEUTRAL_HZ, strict=True))
    neutral = sosfilt(_resonator_sections(before_hz, rate_hz), source[:glide])
    loudness = np.sqrt(np.mean(vowel**2)) + 1e-12
    mouth = np.clip(time_s[:glide] / _GLIDE_S, 0.0, 1.0)
    neutral *= np.sqrt(np.mean(vowel[:glide] ** 2) / (np.mean(neutral**2) + 1e-12))
    vowel[:glide] = mouth * vowel[:glide] + (1 - mouth) * neutral

    rise = np.clip(time_s / _ATTACK_S, 0.0, 1.0) if not hum_s else np.clip((time_s + hum_s) / 0.02, 0.0, 1.0)
    level = np.where(time_s < 0, _HUM_LEVEL, np.clip(_HUM_LEVEL + time_s / _ATTACK_S, 0.0, 1.0)) if hum_s else 1.0
    fall = np.clip((note.end_s + _TAIL_S - note.start_s - time_s) / (_RELEASE_S + _TAIL_S), 0.0, 1.0)
    sustain = 1.0 - 0.25 * np.clip(time_s, 0.0, 1.0)
    envelope = np.sin(np.pi / 2 * rise) * level * fall**2 * sustain
    voice[begin:end] += _LEVEL * note.velocity / loudness * envelope * vowel


def band_pass(signal: Signal, low_hz: float, high_hz: float, rate_hz: int) -> Signal:
    """The signal ``[n]`` through a Butterworth band-pass of order 2."""
    from scipy.signal import butter, sosfilt

    sections = butter(2, (low_hz, min(high_hz, 0.49 * rate_hz)), "bandpass", fs=rate_hz, output="sos")
    return np.asarray(sosfilt(sections, signal))


def _add_noise(voice: Signal, noise: Signal, onset_s: float, burst: _Consonant, gain: float, rate_hz: int) -> None:
    """Add a burst of noise that leads into the vowel at ``onset_s``."""
    begin = max(round((onset_s + burst.overlap_s - burst.duration_s) * rate_hz), 0)
    end = min(round((onset_s + burst.overlap_s) * rate_hz), len(voice))
    shaped = band_pass(noise[begin:end], burst.low_hz, burst.high_hz, rate_hz)
    shaped *= burst.level * gain / (np.sqrt(np.mean(shaped**2)) + 1e-12)
    time = np.linspace(0.0, 1.0, end - begin)
    # A plosive starts at full level and decays; a fricative and a breath swell.
    envelope = np.exp(-3 * time) if burst.duration_s < 0.03 else np.sin(np.pi * time**0.8)
    voice[begin:end] += shaped * envelope
