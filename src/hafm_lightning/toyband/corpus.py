"""The toy band: synthetic songs with a known truth, in the folder layout of MUSDB18-HQ.

A song is a pure function of its seed and duration: a score (``score``), sung (``voice``) and accompanied (``band``).
Beside its five wav files, ``truth.json`` has tempo, key, beats, chords and sung notes, against which the output of a
model can be scored. Song ``i`` of a split is the same for every number of songs and workers, so that a corpus can grow.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

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
_SONGS_PER_WORKER = 8  # a process takes seconds to start: none is started for fewer songs
_SPLITS = ("train", "test")
_ABANDONED_S = 3600.0  # unfinished songs of this age belong to a dead process; another one may be writing younger ones


@dataclass(frozen=True)
class ToySong:
    """A song in memory."""

    stems: dict[str, Audio]  # of each name in `STEMS`: stereo at `RATE_HZ`, on the grid of 16-bit files
    truth: ToyTruth

    @property
    def mixture(self) -> Audio:
        """The exact sum of the stems."""
        return Audio(self.accompaniment.samples + self.stems["vocals"].samples, RATE_HZ)

    @property
    def accompaniment(self) -> Audio:
        """The exact sum of the stems without the vocals."""
        # All samples are multiples of 2^-15, so that float32 sums are exact.
        return Audio(np.sum([self.stems[name].samples for name in STEMS[1:]], axis=0, dtype=np.float32), RATE_HZ)


def synthesise_song(seed: int, duration_s: float = 20.0) -> ToySong:
    """The song of a seed (0 or more), at least 4 s long."""
    truth = compose(seed, duration_s)
    vocals = sing(truth, RATE_HZ)
    tracks = {"vocals": np.stack([vocals, vocals]), **play(truth, RATE_HZ)}
    mixture_peak = float(np.abs(np.sum([tracks[name] for name in STEMS], axis=0)).max())
    loudest = max(mixture_peak, *(float(np.abs(track).max()) for track in tracks.values()))
    gain = min(1.0, _HEADROOM / loudest)
    on_grid = {name: (np.rint(gain * tracks[name] * _PCM_SCALE) / _PCM_SCALE).astype(np.float32) for name in STEMS}
    return ToySong({name: Audio(samples, RATE_HZ) for name, samples in on_grid.items()}, truth)


def synthesise_corpus(
    root: Path, train_songs: int, test_songs: int, duration_s: float = 20.0, seed: int = 0, workers: int | None = None
) -> None:
    """Write ``root/{train,test}/<song>/{mixture,vocals,drums,bass,other}.wav`` and ``truth.json``.

    Complete songs are kept; a song is made again if one of its files is missing or damaged. Every song lasts
    ``duration_s`` and has its own seed, drawn from ``seed``, its split and its number. ``workers`` is the number of
    processes (None: one per core), which does not change the result.

    Raises:
        RequestError: The folder holds other songs (another seed or duration, or more songs), or cannot be written.
    """
    if not duration_s >= 4:
        raise RequestError(f"toy band songs last at least 4 s, got duration_s={duration_s}; ask for longer songs")
    if seed < 0:
        raise RequestError(f"the seed of the toy band must be 0 or more, got {seed}")
    songs = {
        root / split / f"toyband_{split}_{number:04d}": song_seed(seed, split, number)
        for split, count in zip(_SPLITS, (train_songs, test_songs), strict=True)
        for number in range(count)
    }
    _refuse_other_songs(root, songs)
    missing = [(path, own, duration_s) for path, own in songs.items() if not _complete(path, own, duration_s)]
    if not missing:
        return
    remove_unfinished(root, _ABANDONED_S)
    workers = min(workers or usable_cores(), max(1, len(missing) // _SONGS_PER_WORKER))
    with progress("Synthesising the toy band", len(missing), "songs") as bar, local_pool(workers) as pool:
        for index, _ in pool.map(write_song, missing):
            bar.advance(1, missing[index][0].name)


def song_seed(corpus_seed: int, split: str, number: int) -> int:
    """Seed of a song, independent of the number of songs."""
    sequence = np.random.SeedSequence([corpus_seed, _SPLITS.index(split), number])
    return int(sequence.generate_state(1, np.uint32)[0])


def write_song(order: tuple[Path, int, float]) -> None:
    """Synthesise a song (folder, seed, duration in s); the folder appears when it is complete."""
    folder, seed, duration_s = order
    song = synthesise_song(seed, duration_s)
    try:
        with atomic_folder(folder, lambda: _complete(folder, seed, duration_s)) as draft:
            for name in STEMS:
                write_audio(draft / f"{name}.wav", song.stems[name])
            write_audio(draft / "mixture.wav", song.mixture)
            truth = json.dumps(asdict(song.truth), indent=1) + "\n"
            (draft / TRUTH_FILE).write_text(truth, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


def _complete(folder: Path, seed: int, duration_s: float) -> bool:
    """True if all files of a song are there and undamaged; RequestError if the folder holds another song."""
    try:
        truth = ToyTruth.load(folder / TRUTH_FILE)
    except RequestError:
        return False  # missing or damaged: the song is made again
    if (truth.seed, truth.duration_s) != (seed, duration_s):
        raise RequestError(
            f"{folder}: holds a toy band song of another seed or duration ({truth.duration_s} s); "
            "choose another folder, or remove this one"
        )
    try:
        lengths = {probe_audio(folder / f"{name}.wav").frames for name in (*STEMS, "mixture")}
    except RequestError:
        return False
    return lengths == {round(duration_s * RATE_HZ)}


def _refuse_other_songs(root: Path, songs: dict[Path, int]) -> None:
    """RequestError if a folder of the corpus is none of its songs."""
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
