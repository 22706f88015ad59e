"""Open sound files at their true length.

A FLAC or MP3 that was written to a pipe states no length, or a wrong one, and libsndfile believes it: it reads beyond
the end, or stops before it. :func:`open_sound` finds such files, decodes them once in blocks to count, and then gives
them as sound that can only be read from its beginning on.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hafm_lightning import limits
from hafm_lightning.audio.decoding import native, readable_source
from hafm_lightning.audio.headers import MpegHeader, mpeg_frames
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    from soundfile import SoundFile

BLOCK_FRAMES = 1 << 16
"""Samples of each channel that are decoded at a time."""
CODEC_DELAY_FRAMES = {"MP3": 2304, "OGG": 2304}
"""Lossy formats may announce this many frames more than they decode to (encoder delay and padding)."""
_LEAST_FLAC_BITS = 1.0  # for each sample of music; a tenth of what FLAC needs, but more than digital silence
_LEAST_MP3_BITS_S = 8000  # for each second
_MANY_FRAMES = 1 << 30


@dataclass
class Sound:
    """An open sound file."""

    file: SoundFile
    frames: int  # samples of each channel, true as far as can be known
    sequential: bool  # it can only be read from its beginning on
    position: int = 0  # frame at which the next block begins

    def read(self, count: int) -> npt.NDArray[np.float32]:
        """The next ``[n, channels]``, ``n`` at most ``count``; fewer at the end. LibsndfileError if it is damaged."""
        block: npt.NDArray[np.float32] = self.file.read(count, dtype="float32", always_2d=True)
        self.position += len(block)
        return block

    def go_to(self, frame: int) -> None:
        """Let the next block begin at ``frame``."""
        if not self.sequential:
            self.file.seek(frame)
            self.position = frame
        while self.position < frame and len(self.read(min(BLOCK_FRAMES, frame - self.position))):
            pass


@contextmanager
def open_sound(path: Path) -> Iterator[Sound]:
    """The sound in a file that libsndfile reads; LibsndfileError for other files, RequestError beyond the limits."""
    with readable_source(path) as source, _straight(source) as file:
        _check_format(path, file)
        stream = _mpeg_without_length(path, file)
        if stream is None:
            unknown = _length_is_unknown(path, file)
            frames = _counted(path) if unknown else int(file.frames)
            check_length(path, frames, file.samplerate)
            yield Sound(file, frames, unknown or not file.can_seek)
            return
    with stream, _straight(stream) as file:
        frames = _counted(path)
        check_length(path, frames, file.samplerate)
        yield Sound(file, frames, sequential=True)


def _straight(source: Any) -> Any:
    """An open soundfile.SoundFile that does not seek after each block, as soundfile otherwise does.

    A seek starts an MP3 decoder afresh, which changes samples, and fails at the end of a FLAC with a wrong length.
    """
    return _straight_class()(source)


@functools.cache
def _straight_class() -> Any:
    import soundfile

    class Straight(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]
        def seekable(self) -> bool:
            return False

        @property
        def can_seek(self) -> bool:
            return bool(super().seekable())

    return Straight


def has_no_length(path: Path) -> bool:
    """True if libsndfile reads the file, but only from its beginning on: no true length is stated, or no seeking."""
    import soundfile

    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with open_sound(path) as sound:
            return sound.sequential
    except (OSError, RequestError, soundfile.LibsndfileError):  # reading the file reports it
        return False


@contextmanager
def copied_with_length(path: Path) -> Iterator[Path]:
    """Decode a file of :func:`has_no_length` into a temporary float wav, which the end of the block deletes.

    OSError if the temporary folder is full.
    """
    import soundfile

    with tempfile.TemporaryDirectory(prefix="hafm-decoded-") as folder, open_sound(path) as sound:
        copy = Path(folder) / "decoded.wav"
        rate_hz, channels = sound.file.samplerate, sound.file.channels
        with soundfile.SoundFile(native(copy), "w", rate_hz, channels, "FLOAT", format="RF64") as file:
            while len(block := _next_block(path, sound)):
                try:
                    file.write(block)
                except (AssertionError, soundfile.LibsndfileError) as error:  # soundfile asserts that all was written
                    text = f"decoding {path.name} filled {Path(folder).parent}; set TMPDIR to a larger disk"
                    raise OSError(errno.ENOSPC, text) from error
        yield copy


def _next_block(path: Path, sound: Sound) -> npt.NDArray[np.float32]:
    import soundfile

    try:
        return sound.read(BLOCK_FRAMES)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise RequestError(f"{path}: truncated or damaged ({reason}); fetch or export the file again") from error


def check_length(path: Path, frames: int, rate_hz: int) -> None:
    """RequestError if a sound is longer than the limit."""
    most = limits.current().audio_seconds
    if frames > most * rate_hz:
        raise RequestError(
            f"{path}: is {frames / rate_hz / 3600:.1f} h long, at most {most / 3600:g} h are read; "
            f'cut it, or set {limits.VARIABLE}="audio_seconds={frames // rate_hz + 1}"'
        )


def _check_format(path: Path, file: SoundFile) -> None:
    most = limits.current()
    if file.channels > most.audio_channels:
        raise RequestError(f"{path}: claims {file.channels} channels, at most {most.audio_channels} are read")
    lowest, highest = most.audio_min_rate_hz, most.audio_max_rate_hz
    if not lowest <= file.samplerate <= highest:
        raise RequestError(f"{path}: claims {file.samplerate} samples a second, {lowest} to {highest} are read")


def _length_is_unknown(path: Path, file: SoundFile) -> bool:
    """True if the header states no length, or one beyond the limit that cannot lie in so few bytes."""
    too_long = file.frames > limits.current().audio_seconds * file.samplerate
    if not too_long or file.format not in ("FLAC", "MP3"):
        return False
    least_bits = _LEAST_FLAC_BITS * file.channels if file.format == "FLAC" else _LEAST_MP3_BITS_S / file.samplerate
    return bool(path.stat().st_size * 8 < least_bits * file.frames)


def _mpeg_without_length(path: Path, file: SoundFile) -> io.RawIOBase | None:
    """The MP3 behind a header with a length, if its own states none or a wrong one, and libsndfile guessed wrong."""
    if file.format != "MP3":
        return None
    found = _mpeg(path, _identity(path))
    delay = CODEC_DELAY_FRAMES["MP3"]
    if found is None or abs(found[0] - file.frames) <= delay:
        return None
    return _Prefixed(path, found[1])


@functools.lru_cache(maxsize=1024)
def _mpeg(path: Path, identity: tuple[int, ...]) -> tuple[int, MpegHeader] | None:
    return mpeg_frames(path)


def _counted(path: Path) -> int:
    return _count(path, _identity(path))


def _identity(path: Path) -> tuple[int, ...]:
    """Changes when the file changes."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1024)
def _count(path: Path, identity: tuple[int, ...]) -> int:
    """Frames of a file whose header states no true length: it is decoded in blocks. ``identity``: of the file."""
    with readable_source(path) as source, _straight(source) as file:
        stream = _mpeg_without_length(path, file)
        if stream is None:
            return _decoded(path, file)
    with stream, _straight(stream) as file:
        return _decoded(path, file)


def _decoded(path: Path, file: SoundFile) -> int:
    sound = Sound(file, 0, sequential=True)
    while len(sound.read(BLOCK_FRAMES)):
        check_length(path, sound.position, file.samplerate)
    return sound.position


class _Prefixed(io.RawIOBase):
    """An MP3 file behind a frame with a Xing header, from which libsndfile takes the length."""

    def __init__(self, path: Path, header: MpegHeader) -> None:
        super().__init__()
        self._file = path.open("rb")
        head = self._file.read(10)
        a, b, c, d = head[6:10] if head[:3] == b"ID3" else (0, 0, 0, 0)
        self._skipped = 10 + (a << 21 | b << 14 | c << 7 | d) if head[:3] == b"ID3" else 0
        first = bytes((header.first[0], header.first[1] | 1, *header.first[2:]))  # without a checksum
        one_channel = header.first[3] >> 6 == 3
        side = {(1152, False): 32, (1152, True): 17, (576, False): 17, (576, True): 9}[header.samples, one_channel]
        frame = first + bytes(side) + b"Xing" + struct.pack(">II", 1, _MANY_FRAMES)
        self._prefix = frame.ljust(header.size, b"\0")
        self._size = len(self._prefix) + os.fstat(self._file.fileno()).st_size - self._skipped
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = len(buffer)
        data = self._prefix[self._place : self._place + count]
        if len(data) < count:
            self._file.seek(self._skipped + max(0, self._place - len(self._prefix)))
            data += self._file.read(count - len(data))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
