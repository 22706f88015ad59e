"""Read sound files, or windows of them.

A file may claim any length, rate and number of channels: claims are compared with :mod:`hafm_lightning.limits`, and
sound is decoded in blocks, so that no more memory is taken than the sound that was asked for needs.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from hafm_lightning import limits
from hafm_lightning.audio.decoding import ffmpeg_decoded
from hafm_lightning.audio.headers import missing_bytes, wav_codec
from hafm_lightning.audio.lengths import BLOCK_FRAMES, CODEC_DELAY_FRAMES, Sound, open_sound
from hafm_lightning.audio.sound import (
    Audio,
    AudioInfo,
    Cancellation,
    Samples,
    cancelling,
    resample,
    warn_of_cancellation,
)
from hafm_lightning.errors import RequestError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Rate, channels and length of a file; RequestError as :func:`read_audio`.

    Only headers are read where they tell the length and libsndfile reads the file; other files are decoded.
    """
    with _opened(Path(path), 0.0, None) as (sound, _):
        return AudioInfo(sound.file.samplerate, sound.file.channels, sound.frames)


def read_audio(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    rate_hz: int | None = None,
    mono: bool = False,
) -> Audio:
    """Read a file or a window of it.

    Args:
        path: Any file that libsndfile reads, or that ffmpeg reads where it is installed.
        start_s: Start of the window, in seconds.
        duration_s: Length of the window, in seconds; the window is shorter if the file ends sooner. None: to the end.
        rate_hz: Resample to this rate; the file's own if None.
        mono: Return one channel, as :meth:`Audio.mono`.

    RequestError if the file is missing, no regular file, unreadable, not audio, truncated, empty, beyond the limits
    (:mod:`hafm_lightning.limits`) or ends before ``start_s``, or if the window holds NaN or infinite samples.
    """
    path = Path(path)
    if not (start_s >= 0 and (duration_s is None or duration_s > 0)):
        raise ValueError(f"need start_s >= 0 and duration_s > 0, got {start_s} and {duration_s}")
    with _opened(path, start_s, duration_s) as (sound, begin_s):
        own_rate_hz = int(sound.file.samplerate)
        begin = round(begin_s * own_rate_hz)
        if begin >= sound.frames:
            raise RequestError(
                f"{path}: holds {sound.frames / own_rate_hz:.3f} s of audio, nothing at {start_s} s; "
                "ask for an earlier window"
            )
        left = sound.frames - begin
        wanted = left if duration_s is None else min(left, round(duration_s * own_rate_hz))
        samples = _read(path, sound, begin, wanted, mono)
    if samples is None:  # the channels cancel each other
        whole = read_audio(path, start_s=start_s, duration_s=duration_s)
        channel = cancelling(whole.samples, own_rate_hz) or 0
        warn_of_cancellation(path, channel)
        audio = Audio(whole.samples[channel : channel + 1], own_rate_hz)
    else:
        audio = Audio(samples, own_rate_hz)
    if rate_hz is not None and rate_hz != audio.rate_hz:
        audio = Audio(resample(audio.samples, audio.rate_hz, rate_hz), rate_hz)
    return audio


def _read(path: Path, sound: Sound, begin: int, wanted: int, mono: bool) -> Samples | None:
    """``[channels, wanted]`` from frame ``begin`` on, or their mean ``[1, wanted]``; None if they cancel in it.

    RequestError where the decoder fails or stops early, a sample is no number, or the memory does not suffice.
    """
    import soundfile

    channels, rate_hz = sound.file.channels, sound.file.samplerate
    cancellation = Cancellation(channels, rate_hz)
    frame = max(1, round(0.1 * rate_hz))
    step = frame * max(1, BLOCK_FRAMES // frame)
    done = 0
    try:
        samples = np.empty((1 if mono else channels, wanted), np.float32)
        sound.go_to(begin)
        while done < wanted:
            block = sound.read(min(step, wanted - done))
            if not len(block):
                break
            _check_numbers(path, block, begin + done, rate_hz)
            turned = np.ascontiguousarray(block.T)
            if mono and channels > 1:
                cancellation.add(turned)
                turned = turned.mean(axis=0, keepdims=True, dtype=np.float32)
            samples[:, done : done + len(block)] = turned
            done += len(block)
    except soundfile.LibsndfileError as error:
        raise _damaged(path, error.error_string) from error
    except MemoryError:
        size = f"{wanted / rate_hz / 3600:.1f} h of {channels} channels at {rate_hz} Hz"
        raise RequestError(f"{path}: {size} do not fit into this machine's memory; read a shorter file") from None
    if done == 0 or wanted - done > CODEC_DELAY_FRAMES.get(sound.file.format, 0):
        raise _damaged(path, f"{wanted} frames announced from frame {begin} on, {done} found")
    if mono and cancellation.channel() is not None:
        return None
    return samples if done == wanted else np.ascontiguousarray(samples[:, :done])


def _check_numbers(path: Path, block: Samples, first: int, rate_hz: int) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        bad = first + int(np.argmin(finite.all(axis=1)))
        raise RequestError(
            f"{path}: sample {bad} ({bad / rate_hz:.3f} s) is NaN or infinite; export the file again from its source"
        )


def _damaged(path: Path, reason: str) -> RequestError:
    return RequestError(f"{path}: truncated or damaged ({reason.rstrip('.')}); fetch or export the file again")


def _check_file(path: Path) -> None:
    """RequestError if there is no regular file of a size within the limits, or its end is missing."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise RequestError(f"{path}: is a folder; name an audio file in it")
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
            raise RequestError(f"{path}: is {kind}, not a file; save the sound to a file")
        most = limits.current().audio_bytes
        if status.st_size > most:
            raise RequestError(
                f"{path}: has {status.st_size} bytes, at most {most} are read; "
                f'cut it, or set {limits.VARIABLE}="audio_bytes={status.st_size}"'
            )
        missing = missing_bytes(path)
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be opened ({error.strerror or error}); check its permissions") from error
    except ValueError as error:  # a NUL in the name
        raise RequestError(f"{str(path)!r}: is no name of a file ({error}); check the path") from error
    if missing:
        raise _damaged(path, f"cut short: the header announces {missing} bytes more than the file holds")
    if status.st_size == 0:
        raise RequestError(f"{path}: is empty (0 bytes); fetch or export the file again")
    if path.suffix.lower() == ".raw":
        raise RequestError(f"{path}: raw samples have no header; convert the file to WAV")


@contextmanager
def _opened(path: Path, start_s: float, duration_s: float | None) -> Iterator[tuple[Sound, float]]:
    """The open sound, and the window's start in it: ``start_s``, or 0 if ffmpeg has already cut the window."""
    import soundfile

    _check_file(path)
    with ExitStack() as files:
        try:
            sound = files.enter_context(open_sound(path))
        except soundfile.LibsndfileError as error:
            if shutil.which("ffmpeg") is None:
                codec = wav_codec(path)
                reason = f"holds {codec}" if codec else error.error_string.rstrip(".")
                raise RequestError(
                    f"{path}: libsndfile cannot read it ({reason}) and ffmpeg is not "
                    "installed; convert it to WAV, FLAC, OGG or MP3, or install ffmpeg"
                ) from error
            decoded = files.enter_context(ffmpeg_decoded(path, start_s=start_s, duration_s=duration_s))
            try:
                sound, start_s = files.enter_context(open_sound(decoded)), 0.0
            except RequestError as error:
                raise RequestError(str(error).replace(str(decoded), str(path))) from error
        if sound.frames <= 0:
            raise RequestError(f"{path}: holds no audio (0 frames); fetch or export the file again")
        yield sound, start_s
