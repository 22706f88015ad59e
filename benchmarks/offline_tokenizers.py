"""How fast the offline tokenizers are, and what of the music they keep: on toy songs that they were not trained on.

Prints one table for each, in processor seconds of the whole process, which mean the same on a busy machine:

* speed: training on --songs songs of 20 s, encoding and decoding 10 s;
* sound: after the way there and back with 1, 2, 4 and 8 codebooks, the log-mel distance to the original in dB, the
  cosine of chroma, the share of chords still recognised by their triad, and onset F1 at 50 ms; "unquantized" is mel
  inversion and Griffin-Lim alone;
* semantic: how often the chord (24) follows from one token, by majority vote over the training songs.

    python benchmarks/offline_tokenizers.py --json benchmarks/results/tokenizers.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hafm_lightning.audio import resample
from hafm_lightning.tokenizers import spectra
from hafm_lightning.tokenizers.base import ACOUSTIC_SAMPLE_RATE_HZ, SEMANTIC_SAMPLE_RATE_HZ
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer
from hafm_lightning.tokens import SEMANTIC_RATE_HZ, SEMANTIC_VOCABULARY
from hafm_lightning.toyband.corpus import synthesise_song

CLIP_S = 10
CHROMA_WINDOW, CHROMA_HOP = 8192, 480
CODEBOOK_COUNTS = (1, 2, 4, 8)
TEST_SEED = 10_000

Floats = NDArray[np.float32]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Song:
    """A toy song, mono: vocals and band at 16 kHz, band at 24 kHz, and ``(start_s, end_s, chord)``."""

    vocals: Floats
    semantic: Floats
    acoustic: Floats
    chords: list[tuple[float, float, int]]


def toy_songs(first_seed: int, count: int) -> list[Song]:
    """``count`` songs of 20 s."""
    songs = []
    for seed in range(first_seed, first_seed + count):
        song = synthesise_song(seed)
        vocals, band = song.stems["vocals"].mono(), song.accompaniment.mono()
        chords = [
            (chord.start_s, chord.end_s, 2 * chord.root + (chord.quality == "minor")) for chord in song.truth.chords
        ]
        songs.append(
            Song(
                resample(vocals.samples, vocals.rate_hz, SEMANTIC_SAMPLE_RATE_HZ)[0],
                resample(band.samples, band.rate_hz, SEMANTIC_SAMPLE_RATE_HZ)[0],
                resample(band.samples, band.rate_hz, ACOUSTIC_SAMPLE_RATE_HZ)[0],
                chords,
            )
        )
    return songs


def clips(samples: Floats, rate_hz: int) -> list[Floats]:
    """The whole clips of a song."""
    size = CLIP_S * rate_hz
    return [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Result and processor seconds."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def chroma(samples: Floats) -> NDArray[np.float64]:
    """Centred chroma ``[T, 12]`` at 50 Hz, finer in frequency than any tokenizer's."""
    filters = spectra.chroma_filters(ACOUSTIC_SAMPLE_RATE_HZ, CHROMA_WINDOW, 65.0, 2000.0)
    magnitude = spectra.magnitudes(torch.from_numpy(samples), CHROMA_WINDOW, CHROMA_HOP)
    bands = torch.log1p(1000 * (magnitude @ filters.T))
    return (bands - bands.mean(dim=1, keepdim=True)).numpy()


def chroma_cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean cosine over the frames in which the first is tonal."""
    length = np.linalg.norm(one, axis=1)
    cosine = (one * other).sum(axis=1) / (length * np.linalg.norm(other, axis=1) + 1e-9)
    return float(cosine[length > 0.3 * np.median(length)].mean())


def chord_accuracy(frames: NDArray[np.float64], chords: Sequence[tuple[float, float, int]]) -> float:
    """Share of chords whose mean chroma is nearest to their own triad."""
    triads = np.zeros((24, 12))
    for chord in range(24):
        root, minor = divmod(chord, 2)
        triads[chord, [root, (root + 4 - minor) % 12, (root + 7) % 12]] = 1
    rate_hz = ACOUSTIC_SAMPLE_RATE_HZ / CHROMA_HOP
    heard = [(frames[round(start * rate_hz) : round(end * rate_hz)], chord) for start, end, chord in chords]
    return float(np.mean([(triads @ part.mean(axis=0)).argmax() == chord for part, chord in heard if len(part)]))


def log_mel(samples: Floats) -> NDArray[np.float64]:
    """Log-mel frames in dB by librosa, with other windows and bands than the tokenizer's."""
    import librosa

    bands = librosa.filters.mel(sr=ACOUSTIC_SAMPLE_RATE_HZ, n_fft=1024, n_mels=64)
    spectrum = np.abs(librosa.stft(samples.astype(np.float64), n_fft=1024, hop_length=240))
    return np.asarray(20 * np.log10(bands @ spectrum + 1e-2))


def onset_f1(one: Floats, other: Floats) -> float:
    """F1 of onsets by librosa, 50 ms."""
    import librosa
    import mir_eval

    times = [
        librosa.onset.onset_detect(y=sound, sr=ACOUSTIC_SAMPLE_RATE_HZ, hop_length=256, units="time")
        for sound in (one, other)
    ]
    return float(mir_eval.onset.f_measure(times[0], times[1], window=0.05)[0])


def compare(songs: Sequence[Song], sounds: Sequence[Floats]) -> dict[str, float]:
    """Means over songs of what ``sounds`` keep of the originals."""
    rows = []
    for song, sound in zip(songs, sounds, strict=True):
        original, kept = chroma(song.acoustic), chroma(sound)
        distance = np.sqrt(np.mean((log_mel(sound) - log_mel(song.acoustic)) ** 2))
        accuracy = chord_accuracy(kept, song.chords)
        rows.append((distance, chroma_cosine(original, kept), accuracy, onset_f1(song.acoustic, sound)))
    names = ("log_mel_distance_db", "chroma_cosine", "chord_accuracy", "onset_f1")
    return dict(zip(names, np.mean(rows, axis=0).round(3).tolist(), strict=True))


def chord_from_token(tokenizer: OfflineSemanticTokenizer, train: Sequence[Song], test: Sequence[Song]) -> float:
    """Share of held-out frames whose chord is the one that their token stood for most often in training."""

    def pairs(song: Song) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = tokenizer.encode(torch.from_numpy(song.semantic)[None])[0, 0].numpy()
        labels = np.full(len(ids), -1)
        for start_s, end_s, chord in song.chords:
            labels[round(start_s * SEMANTIC_RATE_HZ) : round(end_s * SEMANTIC_RATE_HZ)] = chord
        return ids[labels >= 0], labels[labels >= 0]

    votes = np.zeros((SEMANTIC_VOCABULARY, 24))
    for song in train:
        np.add.at(votes, pairs(song), 1)
    found = [votes.argmax(axis=1)[ids] == labels for ids, labels in map(pairs, test)]
    return float(np.concatenate(found).mean())


def measure(songs: int, held_out: int, threads: int) -> dict[str, Any]:
    """Everything, as JSON values."""
    torch.set_num_threads(threads)
    train, test = toy_songs(0, songs), toy_songs(TEST_SEED, held_out)
    rate16, rate24 = SEMANTIC_SAMPLE_RATE_HZ, ACOUSTIC_SAMPLE_RATE_HZ
    heard = [clip for song in train for sound in (song.vocals, song.semantic) for clip in clips(sound, rate16)]
    played = [clip for song in train for clip in clips(song.acoustic, rate24)]
    semantic, semantic_s = timed(lambda: OfflineSemanticTokenizer.train(heard))
    acoustic, acoustic_s = timed(lambda: OfflineAcousticTokenizer.train(played))
    trial24, trial16 = torch.from_numpy(np.stack(played[:8])), torch.from_numpy(np.stack(heard[:8]))
    codes, encode24_s = timed(lambda: acoustic.encode(trial24))
    _, encode16_s = timed(lambda: semantic.encode(trial16))
    _, decode_s = timed(lambda: acoustic.decode(codes[:4]))

    sounds: dict[str, dict[str, float]] = {}
    ids = [acoustic.encode(torch.from_numpy(song.acoustic)[None]) for song in test]
    for count in CODEBOOK_COUNTS:
        decoded = [acoustic.decode(codes[:, :count])[0].numpy() for codes in ids]
        sounds[f"{count} codebooks"] = compare(test, decoded)
    bare = [acoustic.sound(acoustic.log_mel(torch.from_numpy(song.acoustic))).numpy() for song in test]
    sounds["unquantized"] = compare(test, bare)
    sounds["original"] = compare(test, [song.acoustic for song in test])
    sounds["another song"] = compare(test, [song.acoustic for song in test[1:] + test[:1]])
    return {
        "songs": songs,
        "held_out_songs": held_out,
        "machine": {"processor": platform.machine(), "threads": threads, "torch": torch.__version__},
        "cpu_seconds": {
            "train semantic": round(semantic_s, 2),
            "train acoustic": round(acoustic_s, 2),
            "encode 10 s, semantic": round(encode16_s / len(trial16), 4),
            "encode 10 s, acoustic": round(encode24_s / len(trial24), 4),
            "decode 10 s": round(decode_s / 4, 3),
        },
        "sound": sounds,
        "codebooks": [
            {name: round(level[name], 3) for name in ("explained", "perplexity", "dead_centroids")}
            for level in acoustic.report["kmeans"]
        ],
        "semantic": {
            "chord_from_one_token": round(chord_from_token(semantic, train, test), 3),
            "explained": round(semantic.report["kmeans"]["explained"], 3),
            "perplexity": round(semantic.report["kmeans"]["perplexity"], 1),
        },
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--songs", type=int, default=30, help="toy songs of 20 s to train on")
    parser.add_argument("--held-out", type=int, default=6, help="toy songs of 20 s to measure on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    found = measure(arguments.songs, arguments.held_out, arguments.threads)
    print(f"{'CPU seconds':28}")
    for name, seconds in found["cpu_seconds"].items():
        print(f"  {name:26} {seconds:8.3f}")
    print(f"{'after the way there and back':28} {'log-mel dB':>10} {'chroma':>8} {'chords':>8} {'onsets':>8}")
    for name, row in found["sound"].items():
        print(
            f"  {name:26} {row['log_mel_distance_db']:10.2f} " + " ".join(f"{v:8.3f}" for v in list(row.values())[1:])
        )
    print(f"chord from one semantic token: {found['semantic']['chord_from_one_token']:.3f}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
