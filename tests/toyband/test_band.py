"""The instruments: strikes, rests and chords, measured from the samples."""

from __future__ import annotations

import numpy as np

from hafm_lightning.toyband.corpus import RATE_HZ


def test_bass_and_kick_strike_with_the_syllables(song):
    for name in ("bass", "drums"):
        track = song.stems[name].samples[0]
        for note in song.truth.notes[1:]:
            at = round(note.start_s * RATE_HZ)
            before, after = track[at - 400 : at - 40], track[at : at + 1200]
            assert np.abs(after).max() > 1.5 * np.abs(before).max(), (name, note)


def test_in_a_rest_the_drums_play_and_the_bass_does_not(song):
    assert song.truth.fills
    for fill in song.truth.fills:
        inside = slice(round((fill.start_s + 0.02) * RATE_HZ), round(fill.end_s * RATE_HZ))
        assert np.abs(song.stems["bass"].samples[:, inside]).max() == 0
        assert np.abs(song.stems["drums"].samples[:, inside]).max() > 0.1


def test_chords_sound_where_the_truth_has_them(song):
    """Pitch classes with the most energy in the chords' stem, by a plain Fourier transform."""
    track = song.stems["other"].samples.mean(axis=0)
    right = 0
    chords = [chord for chord in song.truth.chords if chord.end_s - chord.start_s > 0.7]
    for chord in chords:
        piece = track[round((chord.start_s + 0.02) * RATE_HZ) : round((chord.start_s + 0.6) * RATE_HZ)]
        power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 1 << 16)) ** 2
        frequency_hz = np.fft.rfftfreq(1 << 16, 1 / RATE_HZ)
        octave = (frequency_hz > 255) & (frequency_hz < 510)
        chroma = np.zeros(12)
        np.add.at(chroma, np.round(69 + 12 * np.log2(frequency_hz[octave] / 440)).astype(int) % 12, power[octave])
        right += set(np.argsort(chroma)[-3:]) == set(chord.pitch_classes)
    assert right == len(chords)
