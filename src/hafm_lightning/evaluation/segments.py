"""Which seconds of which songs are evaluated, and their sound and tokens.

Songs lie in the layout of MUSDB18-HQ, as the toy band's do. A segment is *vocal-active*: enough of its 0.1 s frames
have a vocal RMS above a gate, which follows the song's own loud frames. Segments are drawn with a seed, do not overlap
within a song, and are taken in rounds: one of every song, then a second of every song, until there are enough. So the
paper's 33 x 3 s are 33 different songs of MUSDB18. Unreadable songs and missing segments are reported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.audio import Audio, read_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.shards import clip_id
from hafm_lightning.songs import MusdbHQ
from hafm_lightning.songs.clips import MARGIN_S, ClipSound, clip_sound, with_noise
from hafm_lightning.songs.song import Song
from hafm_lightning.songs.stems import probe_song, read_window
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import Tokenizer
from hafm_lightning.tokens import (
    CLIP_DURATION_S,
    FRAME_GRID_S,
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    INSTRUMENTAL_SEMANTIC,
    NULL,
    STYLE,
    VOCAL_ACOUSTIC,
    VOCAL_SEMANTIC,
    TokenBatch,
    split_codes,
)

GATE_FRAME_S = 0.1
LOUD_PERCENTILE = 95.0
"""The gate is counted from this percentile of the song's vocal frames."""
TOKENIZE_CLIPS = 8
"""Clips that go through a tokenizer at once."""
CLIPS_IN_MEMORY = 256
"""Clips of a protocol whose sound stays in memory; others are read again."""


class NoSegmentsError(RequestError):
    """The songs are there, but have no vocal-active segment of the length: another length may have some."""


@dataclass(frozen=True)
class SegmentSettings:
    """Which segments are drawn."""

    root: str  # folder with `train` and `test` in the layout of MUSDB18-HQ
    split: str = "test"  # or `train`
    duration_s: float = 3.0  # length of a segment, a multiple of 0.04 s
    clips: int = 33  # segments in all; 0 takes `per_song` of every song
    per_song: int = 0  # most segments of one song; 0 for no limit
    gate_db: float = -30.0  # frames this far below the song's loud vocal frames are silent
    active: float = 0.7  # least share of a segment's frames above the gate
    seed: int = 0

    def __post_init__(self) -> None:
        steps = self.duration_s / FRAME_GRID_S
        if not self.duration_s > 0 or abs(steps - round(steps)) > 1e-6:
            raise ValueError(f"duration_s is {self.duration_s}, must be a positive multiple of {FRAME_GRID_S} s")
        if self.clips < 0 or self.per_song < 0 or not (self.clips or self.per_song):
            raise ValueError("clips and per_song must be 0 or more, and one of them above 0")
        if not 0 <= self.active <= 1 or not self.gate_db < 0:
            raise ValueError(f"need active in 0..1 and gate_db below 0, got {self.active} and {self.gate_db}")


@dataclass(frozen=True)
class Segment:
    """One stretch of a song."""

    song: Song
    start_s: float
    duration_s: float

    @property
    def clip_id(self) -> str:
        """``song@start_s``, as shards name clips."""
        return clip_id(self.song.id, self.start_s)

    @property
    def key(self) -> str:
        """Key of this segment's results on disk; another length or other song files give another key."""
        return f"{self.clip_id}+{self.duration_s:g}s#{self.song.bytes}"


@dataclass(frozen=True)
class Selection:
    """The drawn segments and the problems of the draw."""

    settings: SegmentSettings
    segments: list[Segment]  # in the order of the draw
    songs: int  # number of songs that could be read
    problems: list[str] = field(default_factory=list)  # songs that could not be read, with the reason
    spare: list[Segment] = field(default_factory=list)  # other vocal-active segments, for controls that need them

    @property
    def missing(self) -> int:
        """Segments that were requested and could not be drawn."""
        return max(0, self.settings.clips - len(self.segments))


def select_segments(settings: SegmentSettings) -> Selection:
    """Draw vocal-active segments; the same settings and songs give the same segments.

    Raises:
        RequestError: No such corpus or split.
        NoSegmentsError: Not one vocal-active segment in it.
    """
    if not Path(settings.root).expanduser().is_dir():
        raise RequestError(
            f"folder of songs {settings.root} does not exist\n"
            "give as `root` the folder that holds train/ and test/ in the layout of MUSDB18-HQ"
        )
    listing = MusdbHQ(settings.root, allow_partial=True).listing()
    songs = sorted((song for song in listing.songs if song.split == settings.split), key=lambda song: song.id)
    problems = [f"{entry.name}: {entry.reason}" for entry in listing.quarantined]
    by_song: list[list[Segment]] = []
    for index in np.random.default_rng(settings.seed).permutation(len(songs)):
        song = songs[index]
        try:
            by_song.append(_drawn_order(song, _active_starts(song, settings), settings))
        except RequestError as error:
            problems.append(f"{song.id}: {str(error).splitlines()[0]}")
    rounds = list(zip_longest(*by_song))[: settings.per_song or None]
    drawn = [segment for segments in rounds for segment in segments if segment is not None]
    if not drawn:
        raise NoSegmentsError(
            f"{settings.root}/{settings.split}: no vocal-active segment of {settings.duration_s} s in {len(songs)} "
            f"songs ({len(problems)} unreadable)\n"
            "give a folder in the layout of MUSDB18-HQ, or lower `active` or `gate_db`"
        )
    chosen = drawn[: settings.clips or None]
    taken = set(chosen)
    spare = [segment for segments in by_song for segment in segments if segment not in taken]
    return Selection(settings, chosen, len(by_song), problems, spare)


def vocal_activity(vocal: npt.NDArray[np.float32], rate_hz: int, gate_db: float) -> npt.NDArray[np.bool_]:
    """For each 0.1 s of a mono vocal ``[L]``: whether its RMS is above the gate."""
    size = round(GATE_FRAME_S * rate_hz)
    count = len(vocal) // size
    rms = np.sqrt(np.square(vocal[: count * size].reshape(count, size), dtype=np.float64).mean(axis=1))
    loud = float(np.percentile(rms, LOUD_PERCENTILE)) if count else 0.0
    return np.asarray((rms > loud * 10 ** (gate_db / 20)) & (loud > 0))


def _active_starts(song: Song, settings: SegmentSettings) -> list[float]:
    """Starts of vocal-active windows on a grid of half a window, which may overlap, in seconds."""
    info = probe_song(song)
    vocal = read_audio(song.vocals, mono=True)
    active = vocal_activity(vocal.samples[0], vocal.rate_hz, settings.gate_db)
    step = max(1, round(settings.duration_s / 2 / FRAME_GRID_S))
    last = math.floor((info.duration_s - settings.duration_s) / FRAME_GRID_S + 1e-6)
    starts = []
    for index in range(0, last + 1, step):
        start_s = index * FRAME_GRID_S
        frames = active[round(start_s / GATE_FRAME_S) : round((start_s + settings.duration_s) / GATE_FRAME_S)]
        if len(frames) and frames.mean() >= settings.active:
            starts.append(round(start_s, 6))
    return starts


def _drawn_order(song: Song, starts: Sequence[float], settings: SegmentSettings) -> list[Segment]:
    """Segments of one song that do not overlap, in an order that depends on seed and song id alone."""
    digest = hashlib.sha256(f"{settings.seed}:{song.id}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    order: list[Segment] = []
    for index in generator.permutation(len(starts)):
        start_s = starts[index]
        if all(abs(start_s - other.start_s) >= settings.duration_s - 1e-6 for other in order):
            order.append(Segment(song, start_s, settings.duration_s))
    return order


def read_vocal(segment: Segment) -> Audio:
    """A segment's clean vocal at the rate and with the channels of its file."""
    return read_audio(segment.song.vocals, start_s=segment.start_s, duration_s=segment.duration_s)


@dataclass(frozen=True)
class MusicClip:
    """A segment in memory."""

    segment: Segment
    sound: ClipSound  # vocal and accompaniment at both tokenizers' rates
    semantic_hz: int
    acoustic_hz: int

    @property
    def clip_id(self) -> str:
        """``song@start_s``."""
        return self.segment.clip_id

    @property
    def vocal(self) -> npt.NDArray[np.float32]:
        """The vocal ``[L]`` at ``acoustic_hz``."""
        assert self.sound.vocal_acoustic is not None
        return self.sound.vocal_acoustic

    @property
    def accompaniment(self) -> npt.NDArray[np.float32]:
        """The true accompaniment ``[L]`` at ``acoustic_hz``."""
        return self.sound.instrumental_acoustic


@dataclass(frozen=True)
class ClipReader:
    """Reads segments at the rates of the tokenizers; small enough to be sent to a worker process."""

    semantic_hz: int
    acoustic_hz: int

    @classmethod
    def of(cls, tokenizers: Tokenizers) -> ClipReader:
        """At the rates of ``tokenizers``."""
        return cls(tokenizers.semantic.identity.sample_rate_hz, tokenizers.acoustic.identity.sample_rate_hz)

    def __call__(self, segment: Segment) -> MusicClip:
        """The segment in memory, cut as preparation cuts clips; RequestError for a damaged or too short file."""
        window = read_window(segment.song, None, segment.start_s, segment.duration_s, MARGIN_S)
        sound = clip_sound(window, self.semantic_hz, self.acoustic_hz, vocal_acoustic=True)
        return MusicClip(segment, sound, self.semantic_hz, self.acoustic_hz)


def load_clip(segment: Segment, tokenizers: Tokenizers) -> MusicClip:
    """Read a segment at the rates of ``tokenizers``."""
    return ClipReader.of(tokenizers)(segment)


class SelectedClips:
    """The drawn segments of one protocol; ``load`` reads a segment's sound, and keeps the last used ones in memory."""

    def __init__(self, selection: Selection, reader: ClipReader) -> None:
        self.selection, self.reader = selection, reader
        self.segments = selection.segments
        self.songs = [segment.song.id for segment in self.segments]
        self.duration_s = selection.settings.duration_s
        self.rate_hz = reader.acoustic_hz
        self.load: Callable[[Segment], MusicClip] = lru_cache(maxsize=CLIPS_IN_MEMORY)(reader)


def next_of_other_song(songs: Sequence[str]) -> list[int]:
    """For each clip the index of the next clip, in circular order, of another song; ValueError for one song alone."""
    if len(set(songs)) < 2:
        raise ValueError(f"another song's clips need at least two songs, got {sorted(set(songs))}")
    count = len(songs)
    return [
        next(i for shift in range(1, count) if songs[i := (index + shift) % count] != song)
        for index, song in enumerate(songs)
    ]


def around(segment: Segment, context_s: float) -> tuple[Segment, float]:
    """The stretch of the song, ``context_s`` long, in whose middle a segment lies, and the seconds before the segment.

    At an end of the song the segment is not in the middle; a song shorter than ``context_s`` is taken whole.
    """
    steps = math.floor(probe_song(segment.song).duration_s / FRAME_GRID_S + 1e-6)  # of the grid, in the whole song
    own, first = round(segment.duration_s / FRAME_GRID_S), round(segment.start_s / FRAME_GRID_S)
    wide = max(own, min(round(context_s / FRAME_GRID_S), steps))
    start = max(0, min(first - (wide - own) // 2, steps - wide))
    if start + wide < first + own or start > first:  # a song one sample short of its last segment
        return segment, 0.0
    length_s = wide * FRAME_GRID_S
    return Segment(segment.song, round(start * FRAME_GRID_S, 6), round(length_s, 6)), (first - start) * FRAME_GRID_S


def clip_file_stem(clip_id: str) -> str:
    """A clip id as part of a file name."""
    return "".join(char if char.isalnum() or char in "-_.@" else "_" for char in clip_id)


@dataclass(frozen=True)
class Stretch:
    """A clip with its surroundings, as the tokenizers hear it: they were trained, and train, on 10 s."""

    clip_id: str  # of the clip in it
    wide: MusicClip
    before_s: float
    duration_s: float  # of the clip

    @classmethod
    def of(cls, clip: MusicClip, context_s: float) -> Stretch:
        """With ``context_s`` seconds in all, or the clip's length where that is more."""
        segment, before_s = around(clip.segment, context_s)
        wide = clip if segment == clip.segment else ClipReader(clip.semantic_hz, clip.acoustic_hz)(segment)
        return cls(clip.clip_id, wide, before_s, clip.segment.duration_s)

    def vocal(self, noise_sigma: float) -> npt.NDArray[np.float32]:
        """The vocal at the semantic rate, with noise that depends on the clip's id."""
        return with_noise(self.wide.sound.vocal, self.clip_id, noise_sigma, seed=0)


def tokenize_clips(
    clips: Sequence[MusicClip],
    tokenizers: Tokenizers,
    noise_sigma: float = 0.0,
    conditions: Iterable[str] = (),
    context_s: float = CLIP_DURATION_S,
) -> TokenBatch:
    """Tokens of clips of one length: vocal and instrumental semantic, coarse and fine.

    A clip is tokenized with the seconds around it in its song, since the features of a short clip by itself, or beside
    digital silence, are not those that the stages were trained on.

    Args:
        clips: At least one.
        tokenizers: The pair that the shards were made with.
        noise_sigma: Gaussian noise on the vocal before it is tokenized, as preparation adds it (full scale is 1).
        conditions: Names of the stages' condition streams. The vocal's acoustic tokens are added where one is listed;
            a style is NULL, the learned "none".
        context_s: Seconds of the song that a tokenizer hears at once, with the clip in their middle; 0 for the clip.
    """
    needed = set(conditions)
    stretches = [Stretch.of(clip, context_s) for clip in clips]
    semantic, acoustic = tokenizers.semantic, tokenizers.acoustic
    coarse, fine = split_codes(encoded(acoustic, stretches, [it.wide.accompaniment for it in stretches]))
    instrumentals = [it.wide.sound.instrumental for it in stretches]
    streams = {
        VOCAL_SEMANTIC.name: encoded(semantic, stretches, [it.vocal(noise_sigma) for it in stretches]),
        INSTRUMENTAL_SEMANTIC.name: encoded(semantic, stretches, instrumentals),
        INSTRUMENTAL_COARSE.name: coarse,
        INSTRUMENTAL_FINE.name: fine,
    }
    if VOCAL_ACOUSTIC.name in needed:
        streams[VOCAL_ACOUSTIC.name] = encoded(acoustic, stretches, [it.wide.vocal for it in stretches])
    if STYLE.name in needed:
        streams[STYLE.name] = torch.full((len(clips), STYLE.codebooks, 1), NULL)
    return TokenBatch(streams, [clip.clip_id for clip in clips])


def encoded(
    tokenizer: Tokenizer, stretches: Sequence[Stretch], sounds: Sequence[npt.NDArray[np.float32]]
) -> torch.Tensor:
    """Tokens ``[n, K, T]`` of the clips in ``n`` stretches, of which ``sounds [L]`` are heard, on the CPU."""
    rate_hz, parts, start = tokenizer.identity.rate_hz, [], 0
    while start < len(sounds):
        stop = start + 1  # sounds of unequal lengths never meet in a batch
        while stop < min(start + TOKENIZE_CLIPS, len(sounds)) and len(sounds[stop]) == len(sounds[start]):
            stop += 1
        ids = tokenizer.encode(torch.from_numpy(np.stack(sounds[start:stop]))).cpu()
        for row, it in zip(ids, stretches[start:stop], strict=True):
            first = round(it.before_s * rate_hz)
            parts.append(row[:, first : first + round(it.duration_s * rate_hz)])
        start = stop
    return torch.stack(parts)
