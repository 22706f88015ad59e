"""Fingerprints: find the same recording under two names, across formats, levels and offsets.

Peaks of the spectrogram are joined in pairs; a pair (two frequencies, one distance in time) is a number that survives
lossy coding, gain and a shift in time. After a hash the smallest numbers of a song are kept (a bottom-k sketch), so
that the share of common numbers in two sketches estimates the share in their songs. Songs are the same only if the
common numbers also lie at one constant offset, unlike in songs that use the same drum samples.

Source: the landmarks follow Wang, "An industrial-strength audio search algorithm", ISMIR 2003; the sketch follows
Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import resample
from hafm_lightning.progress import progress

RATE_HZ = 8000
WINDOW = 1024
HOP = 256
SKETCH_SIZE = 256  # numbers of each song's sketch
PAIRED_PEAKS = 20  # later peaks with which each peak is paired
PAIR_FRAMES = 63
PAIR_BINS = 31
_PEAK_SIZE = (15, 11)  # bins, frames
_SHORTEST_SKETCH = 24

Sketch = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class DuplicateSettings:
    """Songs that occur twice.

    Attributes:
        enabled: Leave out repeated songs; for this, every file is decoded once before the plan is made.
        share_min: Songs are the same if this share of their fingerprints agrees at one offset in time.
    """

    enabled: bool = True
    share_min: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share_min <= 1:
            raise ValueError(f"share_min is {self.share_min}, must lie in (0, 1]")


def fingerprint(stretches: Iterable[npt.NDArray[np.float32]], rate_hz: int) -> Sketch:
    """The sketch of a song, given as mono stretches ``[L]``: numbers and the frames at which they first occur.

    uint32 ``[2, n]`` with ``n`` at most :data:`SKETCH_SIZE`, in bounded memory.
    """
    numbers = frames = np.zeros(0, np.uint32)
    samples = 0
    for stretch in stretches:
        signal = resample(stretch, rate_hz, RATE_HZ)
        new_numbers, new_frames = landmarks(signal)
        numbers = np.concatenate((numbers, new_numbers))
        frames = np.concatenate((frames, new_frames + np.uint32(round(samples / HOP))))
        samples += len(signal)
        order = np.lexsort((frames, numbers))
        numbers, first = np.unique(numbers[order], return_index=True)
        numbers, frames = numbers[:SKETCH_SIZE], frames[order][first][:SKETCH_SIZE]
    return np.stack((numbers, frames))


def landmarks(signal: npt.NDArray[np.float32]) -> tuple[Sketch, Sketch]:
    """Hashed pairs of spectral peaks of ``[L]`` at 8 kHz: numbers ``[n]`` and frames ``[n]``."""
    from scipy.ndimage import maximum_filter

    nothing = np.zeros(0, np.uint32)
    frames = 1 + (len(signal) - WINDOW) // HOP
    if frames < 2:
        return nothing, nothing
    strided = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(strided * window, axis=1))).T.astype(np.float32)  # [bins, frames]
    level = 10 * np.log10(power + 1e-9)
    local = maximum_filter(level, size=_PEAK_SIZE, mode="constant", cval=-200.0)
    peaks = (level == local) & (level > level.max() - 60) & (level > -40)  # none in silence
    where = np.argwhere(peaks.T)  # sorted by frame, then bin: [n, 2]
    if len(where) < 2:
        return nothing, nothing
    time, frequency = where[:, 0].astype(np.int64), where[:, 1].astype(np.int64)
    numbers, starts = [], []
    for step in range(1, PAIRED_PEAKS + 1):
        later_time, later_frequency = time[step:], frequency[step:]
        distance, rise = later_time - time[:-step], later_frequency - frequency[:-step]
        near = (distance > 0) & (distance <= PAIR_FRAMES) & (np.abs(rise) <= PAIR_BINS)
        joined = (frequency[:-step] << 12) | ((rise + PAIR_BINS) << 6) | distance
        numbers.append(joined[near])
        starts.append(time[:-step][near])
    return _scramble(np.concatenate(numbers)), np.concatenate(starts).astype(np.uint32)


def _scramble(numbers: npt.NDArray[np.int64]) -> Sketch:
    """A fixed bijection of 32-bit numbers, so that the smallest ones are a fair sample."""
    value = numbers.astype(np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = (value ^ (value >> np.uint32(shift))) * np.uint32(factor)
    return value ^ (value >> np.uint32(16))


def sketch_to_text(sketch: Sketch) -> str:
    """A sketch as text, for JSON. Inverse: :func:`sketch_from_text`."""
    return base64.b64encode(np.ascontiguousarray(sketch, dtype="<u4").tobytes()).decode()


def sketch_from_text(text: str) -> Sketch:
    """Inverse of :func:`sketch_to_text`."""
    return np.frombuffer(base64.b64decode(text), dtype="<u4").reshape(2, -1).astype(np.uint32)


def find_duplicates(sketches: Mapping[str, Sketch], settings: DuplicateSettings) -> dict[str, str]:
    """Song -> the same song under an earlier name in ``sketches`` (song -> sketch), of which the first is kept."""
    songs = [song for song, sketch in sketches.items() if sketch.shape[1] >= _SHORTEST_SKETCH]
    if not songs:
        return {}
    lists = _InvertedLists([sketches[song] for song in songs])
    kept = np.ones(len(songs), bool)
    duplicates: dict[str, str] = {}
    with progress("Searching duplicates", len(songs), "songs") as bar:
        for number, song in enumerate(songs):
            match = lists.first_match(number, kept, settings.share_min)
            if match is not None:
                kept[number] = False
                duplicates[song] = songs[match]
            bar.advance()
    return duplicates


class _InvertedLists:
    """Number -> the songs in which it occurs, ascending, and the frames.

    In a large corpus each number occurs in hundreds of songs, so a song is compared with all others by whole arrays.
    """

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        self._sizes = np.array([sketch.shape[1] for sketch in sketches], np.int64)
        self._ends = np.cumsum(self._sizes)
        numbers = np.concatenate([sketch[0] for sketch in sketches])
        order = np.argsort(numbers, kind="stable").astype(np.int32)
        numbers = numbers[order]
        self._songs = np.repeat(np.arange(len(sketches), dtype=np.int32), self._sizes)[order]
        self._frames = np.concatenate([sketch[1] for sketch in sketches]).astype(np.int32)[order]
        begins = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))).astype(np.int32)
        self._list_begins = np.repeat(begins, np.diff(begins, append=len(order)))
        self._rows_of = np.empty_like(order)
        self._rows_of[order] = np.arange(len(order), dtype=np.int32)

    def first_match(self, song: int, kept: npt.NDArray[np.bool_], share_min: float) -> int | None:
        """The first earlier song, of those ``kept [n]``, that shares enough numbers at one offset.

        Enough is ``share_min`` of the smaller sketch; an offset is two frames wide. None if there is no such song.
        """
        own = self._rows_of[self._ends[song] - self._sizes[song] : self._ends[song]].astype(np.int64)
        begins = self._list_begins[own]
        lengths = own - begins
        # Rows of earlier songs with numbers of this one, once for each number.
        rows = np.arange(int(lengths.sum())) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        others = self._songs[rows]
        offsets = self._frames[rows].astype(np.int64) - np.repeat(self._frames[own], lengths)
        shared = np.bincount(others, minlength=song)
        needed = share_min * np.minimum(self._sizes[:song], self._sizes[song])
        likely = kept[:song] & (shared >= needed)
        chosen = likely[others]
        if not chosen.any():
            return None
        # Song and offset as one number: equal ones are counted, and a neighbour is one offset further.
        keys, counts = np.unique((others[chosen].astype(np.int64) << 33) + offsets[chosen], return_counts=True)
        together = counts.copy()
        neighbours = keys[1:] == keys[:-1] + 1
        together[:-1][neighbours] += counts[1:][neighbours]
        best = np.zeros(song, np.int64)
        np.maximum.at(best, (keys + (1 << 32)) >> 33, together)
        matches = np.flatnonzero(likely & (best >= needed))
        return int(matches[0]) if len(matches) else None
