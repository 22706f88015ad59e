"""The voice: pitch by YIN, vibrato, slides, formants and consonants, measured from the samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hafm_lightning.toyband import corpus as toyband
from hafm_lightning.toyband.corpus import RATE_HZ
from hafm_lightning.toyband.score import Note, compose
from hafm_lightning.toyband.voice import SINGER_SETTINGS, sing, vowel_formants_hz


@pytest.fixture(scope="module")
def pitch(song: toyband.ToySong) -> tuple[np.ndarray, np.ndarray]:
    """Times and fundamental frequencies of the vocal, by YIN: no part of the synthesis."""
    import librosa

    vocal = song.stems["vocals"].samples[0, ::2]
    hop = 128
    track = librosa.yin(vocal, fmin=150, fmax=700, sr=RATE_HZ // 2, frame_length=1024, hop_length=hop)
    return np.arange(len(track)) * hop / (RATE_HZ // 2), track


def test_voice_sings_the_written_notes(song, pitch):
    time_s, found_hz = pitch
    off_cents = []
    for note in song.truth.notes:
        inside = (time_s > note.start_s + 0.08) & (time_s < note.end_s - 0.1)
        off_cents += list(1200 * np.log2(found_hz[inside] / (440 * 2 ** ((note.midi - 69) / 12))))
    assert len(off_cents) > 500
    assert np.mean(np.abs(off_cents) < 60) > 0.95
    assert abs(np.median(off_cents)) < 15


def test_long_notes_have_vibrato():
    truth = compose(11, 8.0)
    note = Note(1.0, 4.0, 64, "a", "m", 1.0)
    vocal = sing(replace(truth, notes=(note,), fills=()), RATE_HZ)[::2]
    import librosa

    hop_hz = RATE_HZ / 2 / 128
    track = librosa.yin(vocal, fmin=200, fmax=500, sr=RATE_HZ // 2, frame_length=1024, hop_length=128)
    cents = 1200 * np.log2(track[int(1.5 * hop_hz) : int(3.9 * hop_hz)])
    cents -= np.convolve(np.pad(cents, 40, mode="edge"), np.ones(81) / 81, mode="valid")
    strength = np.abs(np.fft.rfft(cents * np.hanning(len(cents))))
    rate_hz = np.fft.rfftfreq(len(cents), 1 / hop_hz)[strength.argmax()]
    assert rate_hz == pytest.approx(SINGER_SETTINGS[truth.singer].vibrato_hz, abs=0.5)
    assert 12 < np.sqrt(2 * np.mean(cents**2)) < 50


def test_notes_are_approached_by_a_slide():
    truth = compose(11, 8.0)
    notes = (Note(1.0, 2.0, 57, "a", "m", 1.0), Note(2.0, 3.0, 69, "a", "m", 1.0))
    vocal = sing(replace(truth, notes=notes, fills=()), RATE_HZ)[::2]
    import librosa

    track = librosa.yin(vocal, fmin=150, fmax=700, sr=RATE_HZ // 2, frame_length=1024, hop_length=64)
    around = track[int(1.9 * RATE_HZ / 128) : int(2.15 * RATE_HZ / 128)]
    between = (around > 240) & (around < 400)
    assert 0.01 < between.sum() * 128 / RATE_HZ < 0.12


def long_term_spectrum_db(vowel: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean level of a vowel sung over the whole range, smoothed over 300 Hz."""
    from scipy.signal import welch

    truth = compose(0, 13.0)
    notes = tuple(Note(0.5 + 0.7 * i, 1.2 + 0.7 * i, 55 + i, vowel, "t", 1.0) for i in range(17))
    vocal = sing(replace(truth, singer="tenor", notes=notes, fills=()), RATE_HZ)
    frequency_hz, power = welch(vocal, RATE_HZ, nperseg=8192)
    width = round(300 / frequency_hz[1])
    return frequency_hz, 10 * np.log10(np.convolve(power, np.ones(width) / width, mode="same") + 1e-20)


def test_vowels_resonate_at_their_formants():
    spectra = {vowel: long_term_spectrum_db(vowel) for vowel in "aiu"}

    def level(vowel: str, at_hz: float) -> float:
        frequency_hz, db = spectra[vowel]
        return float(db[np.argmin(np.abs(frequency_hz - at_hz))])

    tenor = SINGER_SETTINGS["tenor"]
    first_a, second_a = vowel_formants_hz("a", tenor, 0.0)[:2]
    second_i = vowel_formants_hz("i", tenor, 0.0)[1]
    # Each resonance is seen as a surplus over a vowel that has none there.
    assert level("a", first_a) - level("i", first_a) > 10
    assert level("a", second_a) - level("i", second_a) > 15
    assert level("i", second_i) - level("u", second_i) > 15
    frequency_hz, db = spectra["i"]
    valley = (frequency_hz > 900) & (frequency_hz < 1500)
    assert level("i", second_i) - db[valley].min() > 6


def test_consonants_are_noise_before_the_vowel_and_rests_are_quiet(song):
    vocal = song.stems["vocals"].samples[0].astype(np.float64)

    def hiss_share(start_s: float, end_s: float) -> float:
        piece = vocal[round(start_s * RATE_HZ) : round(end_s * RATE_HZ)]
        power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)))) ** 2
        frequency_hz = np.fft.rfftfreq(len(piece), 1 / RATE_HZ)
        return float(power[frequency_hz > 5000].sum() / power.sum())

    hissed = [note for note in song.truth.notes if note.consonant == "s"]
    assert hissed
    for note in hissed:
        assert hiss_share(note.start_s - 0.05, note.start_s - 0.01) > 0.5
        assert hiss_share(note.start_s + 0.05, note.start_s + 0.1) < 0.01
    for fill in song.truth.fills:
        rest = vocal[round((fill.start_s + 0.1) * RATE_HZ) : round((fill.end_s - 0.08) * RATE_HZ)]
        assert np.sqrt(np.mean(rest**2)) < 0.1 * np.sqrt(np.mean(vocal**2))
