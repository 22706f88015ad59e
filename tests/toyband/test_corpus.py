"""The corpus: sums of stems, the folder layout, interrupted runs, and other songs."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.toyband import corpus as toyband
from hafm_lightning.toyband.corpus import STEMS, song_seed, synthesise_corpus, synthesise_song
from hafm_lightning.toyband.score import ToyTruth

FILES = {"mixture.wav", "vocals.wav", "drums.wav", "bass.wav", "other.wav", "truth.json"}


def test_stems_add_up_to_the_mixture_exactly(song):
    total = sum(np.round(song.stems[name].samples * 32768).astype(int) for name in STEMS)
    assert np.array_equal(np.round(song.mixture.samples * 32768).astype(int), total)
    assert np.abs(total).max() < 32768
    band = song.accompaniment.samples + song.stems["vocals"].samples
    assert np.array_equal(band, song.mixture.samples)


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


def test_a_song_that_another_process_has_made_meanwhile_is_left_where_it_is(corpus):
    """Its maker may be reading it by now: a folder that vanishes for a moment would be put aside as damaged."""
    folder = corpus / "test" / "toyband_test_0000"
    truth = ToyTruth.load(folder / "truth.json")
    before = folder.stat().st_ino
    toyband.write_song((folder, truth.seed, truth.duration_s))
    assert folder.stat().st_ino == before


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
    assert [path.name for path in tmp_path.rglob("*")] == ["train"]


def test_other_songs_are_neither_mixed_in_nor_removed(corpus):
    with pytest.raises(RequestError, match="another seed or duration"):
        synthesise_corpus(corpus, train_songs=2, test_songs=1, duration_s=4.0, seed=6, workers=1)
    with pytest.raises(RequestError, match=r"toyband_train_0001.*ask for more songs"):
        synthesise_corpus(corpus, train_songs=1, test_songs=1, duration_s=4.0, seed=5, workers=1)
    with pytest.raises(RequestError, match="at least 4 s"):
        synthesise_corpus(corpus, train_songs=1, test_songs=0, duration_s=1.0)


def test_songs_differ_by_seed_and_repeat_by_seed():
    first, again, other = (synthesise_song(seed, 4.0) for seed in (1, 1, 2))
    assert first.truth == again.truth != other.truth
    assert all(np.array_equal(first.stems[name].samples, again.stems[name].samples) for name in STEMS)
    seeds = {song_seed(0, split, number) for split in ("train", "test") for number in range(500)}
    assert len(seeds) == 1000
