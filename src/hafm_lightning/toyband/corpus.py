"""The toy band: synthetic songs with a known truth, in the folder layout of MUSDB18-HQ.

A song is a pure function of its seed and duration: a score (``score``), sung (``voice``) and accompanied (``band``).
Its five wav files are prepared like a song of MUSDB18, and ``truth.json`` beside them has tempo, key, beats, chords and
sung notes, so that the output of a model can be scored against the truth.

A corpus can grow: song ``i`` of a split is the same for every number of songs and workers, finished songs are kept,
and a song's folder appears under its name only when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import Audio, probe_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_folder, remove_unfinished
from hafm_lightning.processes.pool import local_pool, usable_cores
from hafm_lightning.progress import progress
from hafm_lightning.toyband.band import play
from hafm_lightning.toyband.score import ToyTruth, compose
from hafm_lightning.toyband.voice import sing

RATE_HZ = 44100
STEMS = ("vocals", "drums", "bass", "other")  # their sum is the mixture, sample by sample
TRUTH_FILE = "truth.json"

_HEADROOM = 0.97
_PCM_SCALE = 32768
_SONGS_PER_WORKER = 8  # a process costs seconds to start: none is started for fewer songs than this
_SPLITS = ("train", "test")
_ABANDONED_S = 3600.0
"""Unfinished songs of this age were left by a dead process; younger ones may be in progress."""


@dataclass(frozen=True)
class ToySong:
    """A song in memory."""

    stems: dict[str, Audio]  # of each name in `STEMS`: stereo at `RATE_HZ`, on the grid of 16-bit files
    truth: ToyTruth

    @property
    def mixture(self) -> Audio:
        """The exact sum of the stems."""
        return self._sum(STEMS)

    @property
    def accompaniment(self) -> Audio:
        """The exact sum of the stems without the vocals."""
        return self._sum(STEMS[1:])

    def _sum(self, names: Sequence[str]) -> Audio:
        # Every stem is a whole number of 2^-15, so this float32 sum rounds nothing.
        return Audio(np.sum([self.stems[name].samples for name in names], axis=0, dtype=np.float32), RATE_HZ)


def synthesise_song(seed: int, duration_s: float = 20.0) -> ToySong:
    """The song of a seed (0 or more), at least 4 s long; the same samples for the same arguments."""
    truth = compose(seed, duration_s)
    vocals = sing(truth, RATE_HZ)
    tracks = {"vocals": np.stack([vocals, vocals]), **play(truth, RATE_HZ)}
    mixture_peak = float(np.abs(np.sum([tracks[name] for name in STEMS], axis=0)).max())
    loudest = max(mixture_peak, *(float(np.abs(track).max()) for track in tracks.values()))
    gain = min(1.0, _HEADROOM / loudest)
    return ToySong({name: Audio(_on_grid(gain * tracks[name]), RATE_HZ) for name in STEMS}, truth)


def synthesise_corpus(
    root: Path,
    *,
    train_songs: int,
    test_songs: int,
    duration_s: float = 20.0,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write ``root/{train,test}/<song>/{mixture,vocals,drums,bass,other}.wav`` and ``truth.json``.

    Complete songs are kept, so that an interrupted run continues and a corpus can grow. A song is made again if one of
    its files is missing or damaged.

    Every song lasts ``duration_s`` and has its own seed, drawn from ``seed``, its split and its number. ``workers`` is
    the number of processes (None: one per core), which does not change the result.

    Raises:
        RequestError: The folder holds other songs (another seed or duration, or more songs), or cannot be written.
    """
    if train_songs < 0 or test_songs < 0 or train_songs + test_songs == 0:
        raise RequestError(f"the toy band needs at least one song, got train_songs={train_songs}, {test_songs=}")
    if not duration_s >= 4:
        raise RequestError(f"toy band songs last at least 4 s, got duration_s={duration_s}; ask for longer songs")
    if seed < 0:
        raise RequestError(f"the seed of the toy band must be 0 or more, got {seed}")
    songs = {
        root / split / song_name(split, number): song_seed(seed, split, number)
        for split, count in zip(_SPLITS, (train_songs, test_songs), strict=True)
        for number in range(count)
    }
    _refuse_other_songs(root, songs)
    missing = [(path, own, duration_s) for path, own in songs.items() if not _complete(path, own, duration_s)]
    if not missing:
        return
    try:
        for split in _SPLITS:
            (root / split).mkdir(parents=True, exist_ok=True)
        remove_unfinished(root, _ABANDONED_S)
    except OSError as error:
        raise RequestError(f"{root}: cannot be written ({error.strerror}); choose another folder") from error
    workers = min(workers or usable_cores(), max(1, len(missing) // _SONGS_PER_WORKER))
    with progress("Synthesising the toy band", len(missing), "songs") as bar, local_pool(workers) as pool:
        for index, _ in pool.map(_write_song, missing):
            bar.advance(1, missing[index][0].name)


def song_name(split: str, number: int) -> str:
    """Folder name of a song."""
    return f"toyband_{split}_{number:04d}"


def song_seed(corpus_seed: int, split: str, number: int) -> int:
    """Seed of a song, independent of how many songs the corpus has."""
    sequence = np.random.SeedSequence([corpus_seed, _SPLITS.index(split), number])
    return int(sequence.generate_state(1, np.uint32)[0])


def write_song(folder: Path, seed: int, duration_s: float) -> None:
    """Synthesise a song into ``folder``, which appears when it is complete; RequestError if it cannot be written."""
    song = synthesise_song(seed, duration_s)
    try:
        with atomic_folder(folder, lambda: _complete(folder, seed, duration_s)) as draft:
            for name in STEMS:
                write_audio(draft / f"{name}.wav", song.stems[name])
            write_audio(draft / "mixture.wav", song.mixture)
            truth = json.dumps(song.truth.as_dict(), indent=1) + "\n"
            (draft / TRUTH_FILE).write_text(truth, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


def _write_song(song: tuple[Path, int, float]) -> None:
    write_song(*song)


def _on_grid(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (np.rint(samples * _PCM_SCALE) / _PCM_SCALE).astype(np.float32)


def _complete(folder: Path, seed: int, duration_s: float) -> bool:
    """True if all files of a song are there and undamaged; RequestError if the folder holds another song."""
    if not (folder / TRUTH_FILE).is_file():
        return False
    try:
        truth = ToyTruth.load(folder / TRUTH_FILE)
    except RequestError:
        return False  # damaged: the song is made again
    if (truth.seed, truth.duration_s) != (seed, duration_s):
        raise RequestError(
            f"{folder}: holds a toy band song of another seed or duration ({truth.duration_s} s); "
            "choose another folder, or remove this one"
        )
    try:
        lengths = {probe_audio(folder / f"{name}.wav").frames for name in (*STEMS, "mixture")}
    except RequestError:
        return False  # missing or damaged: the song is made again
    return lengths == {round(duration_s * RATE_HZ)}


def _refuse_other_songs(root: Path, songs: dict[Path, int]) -> None:
    """Never mix the toy band with another corpus, and never leave songs that were not asked for."""
    for split in _SPLITS:
        folder = root / split
        if not folder.is_dir():
            continue
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.name.startswith(".") and entry not in songs:
                raise RequestError(
                    f"{entry}: does not belong to the toy band of {sum(song.parent == folder for song in songs)} "
                    f"{split} songs; choose another folder, ask for more songs, or remove it"
                )
