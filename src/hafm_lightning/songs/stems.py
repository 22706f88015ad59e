"""From a song's files to windows of vocal and instrumental sound, in bounded memory.

A song is read in blocks of a minute, with a margin if separation needs one, and windows are cut from a rolling buffer.
Blocks are on a grid that starts at the song's beginning, so that the samples do not depend on the choice of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np

from hafm_lightning.audio import AudioInfo, Samples, in_phase, probe_audio, read_audio, resample
from hafm_lightning.audio.decoding import ffmpeg_decoded, left_to_ffmpeg
from hafm_lightning.audio.lengths import copied_with_length, has_no_length
from hafm_lightning.errors import RequestError
from hafm_lightning.songs.separation.base import Separator
from hafm_lightning.songs.song import Song

BLOCK_S = 60.0  # length of a block, in seconds
LENGTH_TOLERANCE_S = 1.0
"""Stems of a song may differ this much in length (encoders pad); shorter ones are filled with silence."""
_SHORTEST_LAST_BLOCK_S = 2.0


@dataclass(frozen=True)
class Block:
    """A stretch of a song."""

    start: int  # first sample
    vocal: Samples  # float32 `[C, n]`
    instrumental: Samples  # float32 `[C, n]`
    separated: bool = False  # their sum is the mixture's file


@dataclass(frozen=True)
class Window:
    """A stretch of a song with some context on each side, for resampling without edges."""

    start_s: float  # start of the window in the song
    before: int  # samples of context before the window
    length: int  # samples of the window itself
    rate_hz: int
    vocal: Samples  # float32 `[C, before + length + after]`
    instrumental: Samples  # the same shape
    separated: bool = False  # their sum is the mixture's file
    cancelled: bool = False  # the channels of one of them cancel each other: every channel is the strongest one

    @classmethod
    def of(
        cls, start_s: float, before: int, length: int, rate_hz: int, stems: tuple[Samples, Samples], separated: bool
    ) -> Window:
        """A window of ``stems`` (vocal, instrumental), whose channels do not cancel each other in their mean.

        Filters measure all channels, tokenizers the mean: both must be given the same sound.
        """
        kept = [in_phase(stem, rate_hz) for stem in stems]
        cancelled = any(len(new) < len(stem) for stem, new in zip(stems, kept, strict=True))
        vocal, instrumental = (
            new if len(new) == len(stem) else np.repeat(new, len(stem), axis=0)
            for stem, new in zip(stems, kept, strict=True)
        )
        return cls(start_s, before, length, rate_hz, vocal, instrumental, separated, cancelled)

    def inner(self, samples: Samples) -> Samples:
        """The window itself, without its context."""
        return samples[:, self.before : self.before + self.length]


def song_files(song: Song) -> list[Path]:
    """The files that are tokenized."""
    names = [song.mixture] if song.needs_separation else [song.vocals, *song.accompaniment]
    return [Path(name) for name in names]


@contextmanager
def readable(song: Song, *, with_mixture: bool = False) -> Iterator[Song]:
    """The song with files that libsndfile reads anywhere: others are decoded once, as every block would cost as much.

    Others are files for ffmpeg, and files that state no true length or have no seeking.

    The decoded files exist until the block ends; RequestErrors inside it name the song's own files. ``with_mixture``:
    also decode the mixture of a song with stems. OSError if the temporary folder is full.
    """
    decoded: dict[str, str] = {}
    paths = song_files(song) + ([Path(song.mixture)] if with_mixture and song.mixture else [])
    with ExitStack() as files:
        for path in dict.fromkeys(paths):
            if left_to_ffmpeg(path):
                decoded[str(path)] = str(files.enter_context(ffmpeg_decoded(path)))
            elif has_no_length(path):
                decoded[str(path)] = str(files.enter_context(copied_with_length(path)))
        try:
            yield replace(
                song,
                mixture=decoded.get(song.mixture, song.mixture),
                vocals=decoded.get(song.vocals, song.vocals),
                accompaniment=tuple(decoded.get(name, name) for name in song.accompaniment),
            )
        except RequestError as error:
            if not decoded:
                raise
            text = str(error)
            for own, temporary in decoded.items():
                text = text.replace(temporary, own)
            raise RequestError(text) from error


def probe_song(song: Song) -> AudioInfo:
    """Rate and length of a song's files; RequestError if one is unreadable, or their rates or lengths differ."""
    infos = {path: probe_audio(path) for path in song_files(song)}
    first = next(iter(infos.values()))
    for path, info in infos.items():
        if info.rate_hz != first.rate_hz:
            rates = f"{info.rate_hz} Hz beside a vocal stem of {first.rate_hz} Hz"
            raise RequestError(f"{path}: {rates}; export the stems at one rate")
        if abs(info.frames - first.frames) > LENGTH_TOLERANCE_S * first.rate_hz:
            lengths = f"{info.duration_s:.2f} s beside a vocal stem of {first.duration_s:.2f} s"
            raise RequestError(f"{path}: {lengths}; export the stems at one length")
    return replace(first, frames=max(info.frames for info in infos.values()))


def read_blocks(song: Song, separator: Separator | None) -> Iterator[Block]:
    """Vocal and instrumental in blocks, at the rate of :func:`stem_rate_hz`; errors as :func:`read_window`."""
    info = probe_song(song)
    for start_s, stop_s in block_grid(info.duration_s):
        yield _read_block(song, info, separator, start_s, stop_s)


def _read_block(song: Song, info: AudioInfo, separator: Separator | None, start_s: float, stop_s: float) -> Block:
    if not song.needs_separation:
        return _read_stems(song, info, start_s, stop_s)
    if separator is None:
        raise RequestError(
            f"{song.id}: there is only the mixture and no separation model; "
            "give `separation.model`, or a corpus of stems"
        )
    return _separate(Path(song.mixture), info, separator, start_s, stop_s)


def _read_stems(song: Song, info: AudioInfo, start_s: float, stop_s: float) -> Block:
    start, stop = round(start_s * info.rate_hz), min(round(stop_s * info.rate_hz), info.frames)
    vocal = read_stretch(Path(song.vocals), info.rate_hz, start, stop)
    parts = [read_stretch(Path(path), info.rate_hz, start, stop) for path in song.accompaniment]
    channels = max(part.shape[0] for part in (vocal, *parts))
    if channels > 1:
        vocal, parts = to_stereo(vocal), [to_stereo(part) for part in parts]
    return Block(start, vocal, reduce(np.add, parts))


def _separate(path: Path, info: AudioInfo, separator: Separator, start_s: float, stop_s: float) -> Block:
    """Separate with the context that the model needs, then remove the context."""
    rate = separator.rate_hz
    from_s, to_s = max(0.0, start_s - separator.margin_s), min(info.duration_s, stop_s + separator.margin_s)
    start, stop = round(from_s * info.rate_hz), min(round(to_s * info.rate_hz), info.frames)
    mixture = resample(to_stereo(read_stretch(path, info.rate_hz, start, stop)), info.rate_hz, rate)
    stems = separator.separate(mixture, round(from_s * rate))
    first, length = round((start_s - from_s) * rate), round(stop_s * rate) - round(start_s * rate)
    vocal, instrumental = (_fixed(part[:, first:], length) for part in (stems.vocals, stems.instrumental))
    return Block(round(start_s * rate), vocal, instrumental, separated=True)


def stem_rate_hz(song: Song, info: AudioInfo, separator: Separator | None) -> int:
    """Sample rate of the blocks: the files' own, or the separator's."""
    return separator.rate_hz if song.needs_separation and separator is not None else info.rate_hz


def read_window(song: Song, separator: Separator | None, start_s: float, duration_s: float, margin_s: float) -> Window:
    """One window with its context, without reading the rest of the song.

    A separated window differs a little from the same one cut from blocks, since the model gets another context.
    RequestError if a file is damaged or ends before the window, or if the song needs a separator and there is none.
    """
    info = probe_song(song)
    rate_hz = stem_rate_hz(song, info, separator)
    from_s, to_s = max(0.0, start_s - margin_s), min(info.duration_s, start_s + duration_s + margin_s)
    block = _read_block(song, info, separator, from_s, to_s)
    before, length = round(start_s * rate_hz) - block.start, round(duration_s * rate_hz)
    if block.vocal.shape[1] < before + length - 1:
        raise RequestError(f"{song.id}: {info.duration_s:.3f} s long, no window of {duration_s} s at {start_s} s")
    size = max(block.vocal.shape[1], before + length)
    stems = _fixed(block.vocal, size), _fixed(block.instrumental, size)
    return Window.of(start_s, before, length, rate_hz, stems, block.separated)


def block_grid(duration_s: float) -> Iterator[tuple[float, float]]:
    """Starts and ends of blocks, in seconds; a short rest is joined to the block before it."""
    start_s = 0.0
    while start_s < duration_s:
        stop_s = start_s + BLOCK_S
        if duration_s - stop_s < _SHORTEST_LAST_BLOCK_S:
            stop_s = duration_s
        yield start_s, stop_s
        start_s = stop_s


def read_stretch(path: Path, rate_hz: int, start: int, stop: int) -> Samples:
    """Samples ``start`` to ``stop`` of a file, float32 ``[C, stop - start]``, silence after the file's end."""
    info = probe_audio(path)
    if start >= info.frames:
        return np.zeros((info.channels, stop - start), np.float32)
    audio = read_audio(path, start_s=start / rate_hz, duration_s=(stop - start) / rate_hz)
    return _fixed(audio.samples, stop - start)


def _fixed(samples: Samples, length: int) -> Samples:
    """``[C, L]`` cut or filled with silence to ``[C, length]``."""
    missing = length - samples.shape[1]
    return np.pad(samples, ((0, 0), (0, missing))) if missing > 0 else samples[:, :length]


def to_stereo(samples: Samples) -> Samples:
    """Any number of channels ``[C, L]`` -> ``[2, L]``.

    5.1 is folded down by ITU-R BS.775 (centre and surrounds at -3 dB, no low-frequency channel), scaled so that it
    cannot clip; other layouts become their mean, twice.
    """
    channels = samples.shape[0]
    if channels == 2:
        return samples
    if channels == 6:
        left, right, centre, _, left_surround, right_surround = samples
        side = np.float32(0.5**0.5)
        folded = np.stack((left + side * (centre + left_surround), right + side * (centre + right_surround)))
        return (folded / (1 + 2 * side)).astype(np.float32)
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)


def cut_windows(
    blocks: Iterator[Block], rate_hz: int, starts: Iterator[float], duration_s: float, margin_s: float
) -> Iterator[Window]:
    """Windows of ``duration_s`` at the ascending ``starts`` (seconds), cut while the blocks arrive.

    Each has up to ``margin_s`` of context on each side. ValueError if a window ends after the last block.
    """
    vocal = instrumental = np.zeros((1, 0), np.float32)
    begin = 0  # first sample of the buffer
    separated = False
    length, margin = round(duration_s * rate_hz), round(margin_s * rate_hz)
    for start_s in starts:
        start = round(start_s * rate_hz)
        low = max(0, start - margin)
        while begin + vocal.shape[1] < start + length + margin:
            block = next(blocks, None)
            if block is None:
                break
            separated = block.separated
            if vocal.shape[1] == 0:
                begin, vocal, instrumental = block.start, block.vocal, block.instrumental
            else:
                keep = max(0, min(low - begin, vocal.shape[1]))
                vocal = np.concatenate((vocal[:, keep:], block.vocal), axis=1)
                instrumental = np.concatenate((instrumental[:, keep:], block.instrumental), axis=1)
                begin += keep
        # At a rate off the grid of 0.04 s, the song may be one sample too short because of rounding.
        if begin + vocal.shape[1] < start + length - 1 or low < begin:
            raise ValueError(f"window at {start_s} s is outside the buffered sound")
        cut = slice(low - begin, start + length + margin - begin)
        size = max(vocal[:, cut].shape[1], start - low + length)
        parts = _fixed(vocal[:, cut], size), _fixed(instrumental[:, cut], size)
        yield Window.of(start_s, start - low, length, rate_hz, parts, separated)
