"""The toy band: its music is measured from the score, its sound from the samples, its files from the disk."""

from __future__ import annotations

import json
import math
import os
import wave
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.toyband import corpus as toyband
from hafm_lightning.toyband.corpus import RATE_HZ, STEMS, song_seed, synthesise_corpus, synthesise_song
from hafm_lightning.toyband.score import Note, ToyTruth, compose
from hafm_lightning.toyband.voice import SINGER_SETTINGS, sing, vowel_formants_hz

FILES = {"mixture.wav", "vocals.wav", "drums.wav", "bass.wav", "other.wav", "truth.json"}


def conditional_entropy_bits(pairs: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Plug-in estimate of H(second | first)."""
    pairs = list(pairs)
    joint, given = Counter(pairs), Counter(first for first, _ in pairs)
    return -sum(n / len(pairs) * math.log2(n / given[first]) for (first, _), n in joint.items())


@pytest.fixture(scope="module")
def scores() -> list[ToyTruth]:
    return [compose(seed, 30.0) for seed in range(400)]


@pytest.fixture(scope="module")
def song() -> toyband.ToySong:
    return synthesise_song(11, 12.0)


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


# The music


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
    (tmp_path / "truth.json").write_text(json.dumps(truth.as_dict()))
    assert ToyTruth.load(tmp_path / "truth.json") == truth
    (tmp_path / "truth.json").write_text('{"seed": 3}')
    with pytest.raises(RequestError, match=r"truth\.json: not a truth file"):
        ToyTruth.load(tmp_path / "truth.json")


# The voice


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


# The band


def test_stems_add_up_to_the_mixture_exactly(song):
    total = sum(np.round(song.stems[name].samples * 32768).astype(int) for name in STEMS)
    assert np.array_equal(np.round(song.mixture.samples * 32768).astype(int), total)
    assert np.abs(total).max() < 32768
    band = song.accompaniment.samples + song.stems["vocals"].samples
    assert np.array_equal(band, song.mixture.samples)


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


# The corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    synthesise_corpus(tmp_path / "corpus", train_songs=2, test_songs=1, duration_s=4.0, seed=5, workers=1)
    return tmp_path / "corpus"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_is_that_of_musdb18_hq(corpus):
    assert sorted(path.name for path in corpus.iterdir()) == ["test", "train"]
    songs = [song for split in ("train", "test") for song in (corpus / split).iterdir()]
    assert len(songs) == 3
    for song in songs:
        assert {path.name for path in song.iterdir()} == FILES
        tracks = {}
        for name in (*STEMS, "mixture"):
            with wave.open(os.fspath(song / f"{name}.wav")) as file:
                assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (44100, 2, 2)
                tracks[name] = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
        assert len(tracks["mixture"]) == 2 * 4 * 44100
        assert np.array_equal(sum(tracks[name] for name in STEMS), tracks["mixture"])
        assert ToyTruth.load(song / "truth.json").duration_s == 4.0


def test_number_of_workers_and_of_songs_does_not_change_a_byte(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(toyband, "_SONGS_PER_WORKER", 1)
    synthesise_corpus(tmp_path / "other", train_songs=3, test_songs=1, duration_s=4.0, seed=5, workers=2)
    other = contents(tmp_path / "other")
    assert {name: other[name] for name in contents(corpus)} == contents(corpus)
    assert len({other[name] for name in other if name.endswith("mixture.wav")}) == 4


def test_an_interrupted_corpus_is_completed_and_what_is_whole_is_kept(corpus):
    before = contents(corpus)
    kept = corpus / "train" / "toyband_train_0000"
    times = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    cut = corpus / "train" / "toyband_train_0001" / "bass.wav"
    cut.write_bytes(cut.read_bytes()[:1000])
    (corpus / "test" / "toyband_test_0000" / "truth.json").unlink()
    synthesise_corpus(corpus, train_songs=2, test_songs=1, duration_s=4.0, seed=5, workers=1)
    assert contents(corpus) == before
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == times


def test_a_song_that_fails_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def fail_at_the_third(path, audio, *, subtype="PCM_16"):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")

    monkeypatch.setattr(toyband, "write_audio", fail_at_the_third)
    with pytest.raises(RequestError, match="No space left on device"):
        synthesise_corpus(tmp_path, train_songs=1, test_songs=0, duration_s=4.0, workers=1)
    assert len(written) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["test", "train"]


def test_other_songs_are_neither_mixed_in_nor_removed(corpus):
    with pytest.raises(RequestError, match="another seed or duration"):
        synthesise_corpus(corpus, train_songs=2, test_songs=1, duration_s=4.0, seed=6, workers=1)
    with pytest.raises(RequestError, match=r"toyband_train_0001.*ask for more songs"):
        synthesise_corpus(corpus, train_songs=1, test_songs=1, duration_s=4.0, seed=5, workers=1)
    with pytest.raises(RequestError, match="at least one song"):
        synthesise_corpus(corpus, train_songs=0, test_songs=0)
    with pytest.raises(RequestError, match="at least 4 s"):
        synthesise_corpus(corpus, train_songs=1, test_songs=0, duration_s=1.0)


def test_songs_differ_by_seed_and_repeat_by_seed():
    first, again, other = (synthesise_song(seed, 4.0) for seed in (1, 1, 2))
    assert first.truth == again.truth != other.truth
    assert all(np.array_equal(first.stems[name].samples, again.stems[name].samples) for name in STEMS)
    seeds = {song_seed(0, split, number) for split in ("train", "test") for number in range(500)}
    assert len(seeds) == 1000
