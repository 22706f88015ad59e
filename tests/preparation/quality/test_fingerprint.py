"""Fingerprints: the same recording is found under any name, format and level; other music is not."""

from collections import Counter

import numpy as np
import pytest
import soundfile
from tiny_corpora import RATE_HZ, vocal_and_band

from hafm_lightning.preparation.quality.fingerprint import (
    SKETCH_SIZE,
    DuplicateSettings,
    find_duplicates,
    fingerprint,
    sketch_from_text,
    sketch_to_text,
)


def song(seed: int, seconds: float = 20.0) -> np.ndarray:
    vocal, band = vocal_and_band(seconds, seed)
    return vocal + band


def sketch(samples: np.ndarray, rate_hz: int = RATE_HZ):
    return fingerprint([samples.astype(np.float32)], rate_hz)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the smaller sketch whose numbers are in the other one too, at one offset in time (two frames wide)."""
    _, a, b = np.intersect1d(first[0], second[0], return_indices=True)
    if not len(a):
        return 0.0
    offsets = first[1][a].astype(np.int64) - second[1][b].astype(np.int64)
    counts = Counter(offsets.tolist())
    best = max(counts[offset] + counts.get(offset + 1, 0) for offset in counts)
    return float(best / min(first.shape[1], second.shape[1]))


def as_mp3(samples: np.ndarray, folder) -> tuple[np.ndarray, int]:
    soundfile.write(folder / "copy.mp3", samples, RATE_HZ)
    return soundfile.read(folder / "copy.mp3", dtype="float32")


def test_copies_agree_and_other_songs_do_not(tmp_path):
    original = song(0)
    first = sketch(original)
    decoded, rate_hz = as_mp3(original, tmp_path)
    copies = {
        "mp3": sketch(decoded, rate_hz),
        "quieter": sketch(original * 0.2),
        "late": sketch(np.concatenate((np.zeros(12_345, np.float32), original))),
        "noisy": sketch(original + 0.003 * np.random.default_rng(0).standard_normal(len(original))),
        "shorter": sketch(original[: 16 * RATE_HZ]),
    }
    others = {f"song {seed}": sketch(song(seed)) for seed in range(1, 6)}
    for name, other in copies.items():
        assert agreement(first, other) > 0.3, name
    for name, other in others.items():
        assert agreement(first, other) < 0.1, name
    found = find_duplicates({"original": first} | others | copies, DuplicateSettings())
    assert found == dict.fromkeys(copies, "original")


def test_songs_on_the_same_drum_loop_are_different():
    """The same hits at other times share their numbers but no offset."""
    generator = np.random.default_rng(0)
    hit = np.exp(-np.arange(2000) / 300) * np.sin(2 * np.pi * np.cumsum(np.linspace(900, 80, 2000)) / RATE_HZ)
    snare = np.exp(-np.arange(2000) / 500) * np.random.default_rng(1).standard_normal(2000) * 0.3

    def loop(bpm):
        samples = 0.0005 * generator.standard_normal(20 * RATE_HZ)
        for beat in range(int(19 * bpm / 60)):
            start = round(beat * 60 / bpm * RATE_HZ)
            samples[start : start + 2000] += hit if beat % 2 == 0 else snare
        return samples

    assert agreement(sketch(loop(100)), sketch(loop(127))) < 0.2


def test_stretches_make_the_same_sketch_as_the_whole_song():
    samples = song(3, 48.0).astype(np.float32)
    whole = fingerprint([samples], RATE_HZ)
    parts = fingerprint(np.split(samples, range(16 * RATE_HZ, len(samples), 16 * RATE_HZ)), RATE_HZ)
    assert agreement(whole, parts) > 0.75  # pairs across the cuts are lost
    assert whole.shape == (2, SKETCH_SIZE)


def test_sketches_travel_as_text():
    numbers = np.random.default_rng(0).integers(0, 2**32, (2, 100), dtype=np.uint32)
    np.testing.assert_array_equal(sketch_from_text(sketch_to_text(numbers)), numbers)
    assert sketch_from_text("").shape == (2, 0)


@pytest.mark.parametrize("samples", [np.zeros(160_000), np.full(160_000, 0.1), np.ones(300), np.zeros(0)])
def test_silence_has_no_fingerprint_and_no_duplicates(samples):
    empty = sketch(samples)
    assert empty.shape[1] < 24
    assert find_duplicates({"a": empty, "b": empty}, DuplicateSettings()) == {}


def random_sketch(generator, universe, frames=20_000):
    """The sketch of a song whose numbers are drawn from ``universe``: the more songs, the more share each number."""
    numbers = generator.choice(universe, SKETCH_SIZE, replace=False)
    return np.stack((np.sort(numbers), generator.integers(0, frames, SKETCH_SIZE))).astype(np.uint32)


def copy_of(sketch, generator, share, later):
    """A sketch that keeps ``share`` of another's numbers, ``later`` frames later."""
    copied = sketch.copy()
    changed = generator.random(SKETCH_SIZE) >= share
    copied[0][changed] = generator.integers(2**31, 2**32, changed.sum())
    copied[1] += np.uint32(later)
    return copied


def test_copies_are_found_among_many_songs_that_share_every_number():
    """In a large corpus each number is in hundreds of songs: here 2000 songs draw 256 of 2000 numbers."""
    generator = np.random.default_rng(0)
    universe = generator.choice(2**31, 2000, replace=False)
    sketches = {f"song {number}": random_sketch(generator, universe) for number in range(2000)}
    copies = {f"copy {number}": copy_of(sketches[f"song {number}"], generator, 0.5, 31) for number in (3, 1990)}
    found = find_duplicates(sketches | copies, DuplicateSettings())
    assert found == {"copy 3": "song 3", "copy 1990": "song 1990"}


def test_the_search_finds_what_comparing_all_pairs_finds():
    generator = np.random.default_rng(1)
    universe = generator.choice(2**31, 600, replace=False)
    sketches = {}
    for number in range(12):
        sketches[f"{number}"] = original = random_sketch(generator, universe, frames=300)
        for share in (0.15, 0.25, 0.6):
            copied = copy_of(original, generator, share, int(generator.integers(0, 50)))
            sketches[f"{number} {share}"] = copied[:, : int(generator.integers(60, SKETCH_SIZE + 1))]
    expected: dict[str, str] = {}
    for song in sketches:
        for other in sketches:
            if other == song:
                break
            if other not in expected and agreement(sketches[other], sketches[song]) >= 0.2:
                expected[song] = other
                break
    assert 12 < len(expected) < 36
    assert find_duplicates(sketches, DuplicateSettings(share_min=0.2)) == expected
