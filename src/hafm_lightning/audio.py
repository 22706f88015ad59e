"""Sound in and out: read, write, resample, loudness, mix. Every rate is in Hz, every time in s.

Choices:

* Files go through libsndfile (wav, flac, ogg, mp3, aiff, ...), the rest through ffmpeg where it is installed. A file
  that is missing, damaged or holds NaN is refused by name: one bad file must not become a silent clip in a shard.
* One resampler, soxr at quality HQ. Resampling changes tokens, so :data:`RESAMPLER` is written into every manifest.
* PCM is scaled by 2^(bits - 1) in both directions, so reading and writing a file again gives the same samples.
* Loudness is ITU-R BS.1770-4 (gated, K-weighted), the peak limit is on the true peak (4 x oversampled).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio_decode import ffmpeg_decoded, missing_bytes, native
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file

if TYPE_CHECKING:
    from soundfile import SoundFile

Samples = npt.NDArray[np.float32]
Subtype = Literal["PCM_16", "PCM_24", "FLOAT"]

RESAMPLER = "soxr-hq"
"""Identity of :func:`resample`, recorded in manifests and tokenizers."""
PEAK_LIMIT_DBTP = -1.0
"""Default true-peak ceiling of everything that is mixed, in dB below full scale."""

_PCM_SCALE = {"PCM_16": 1 << 15, "PCM_24": 1 << 23}
_CODEC_DELAY_FRAMES = {"MP3": 2304, "OGG": 2304}
"""Lossy formats may announce this many frames more than they decode to (encoder delay and padding)."""
_OVERSAMPLING = 4
_GATING_BLOCK_S = 0.4  # of BS.1770


@dataclass(frozen=True)
class Audio:
    """Sound in memory."""

    samples: Samples  # float32 `[channels, L]`, full scale at 1.0
    rate_hz: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.shape[0] < 1:
            raise ValueError(f"expected samples [channels, L] with at least one channel, got {self.samples.shape}")
        if self.samples.dtype != np.float32:
            raise ValueError(f"expected float32 samples, got {self.samples.dtype}")
        if self.rate_hz <= 0:
            raise ValueError(f"the sample rate must be positive, got {self.rate_hz} Hz")

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.samples.shape[0])

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return float(self.samples.shape[1] / self.rate_hz)

    def mono(self) -> Audio:
        """The mean of the channels, as one channel ``[1, L]``."""
        if self.channels == 1:
            return self
        return Audio(self.samples.mean(axis=0, keepdims=True, dtype=np.float32), self.rate_hz)


@dataclass(frozen=True)
class AudioInfo:
    """Header of an audio file."""

    rate_hz: int
    channels: int
    frames: int  # samples of each channel

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate_hz


def probe_audio(path: str | os.PathLike[str]) -> AudioInfo:
    """Header of a file, without decoding it where libsndfile reads it; RequestError as :func:`read_audio`."""
    with _opened(Path(path), 0.0, None) as (file, _):
        return AudioInfo(file.samplerate, file.channels, file.frames)


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
        mono: Return the mean of the channels.

    RequestError if the file is missing, a folder, unreadable, not audio, truncated, empty or ends before ``start_s``,
    or if the window holds NaN or infinite samples.
    """
    path = Path(path)
    if not (start_s >= 0 and (duration_s is None or duration_s > 0)):
        raise ValueError(f"need start_s >= 0 and duration_s > 0, got {start_s} and {duration_s}")
    with _opened(path, start_s, duration_s) as (file, begin_s):
        begin = round(begin_s * file.samplerate)
        if begin >= file.frames:
            raise RequestError(
                f"{path}: holds {file.frames / file.samplerate:.3f} s of audio, nothing at {start_s} s; "
                "ask for an earlier window"
            )
        left = file.frames - begin
        wanted = left if duration_s is None else min(left, round(duration_s * file.samplerate))
        frames = _read_frames(path, file, begin, wanted)
        own_rate_hz = int(file.samplerate)
    if not np.isfinite(frames).all():
        bad = int(np.argmin(np.isfinite(frames).all(axis=1)))
        raise RequestError(
            f"{path}: sample {begin + bad} ({(begin + bad) / own_rate_hz:.3f} s) is NaN or infinite; "
            "export the file again from its source"
        )
    audio = Audio(np.ascontiguousarray(frames.T), own_rate_hz)
    if mono:
        audio = audio.mono()
    if rate_hz is not None and rate_hz != audio.rate_hz:
        audio = Audio(resample(audio.samples, audio.rate_hz, rate_hz), rate_hz)
    return audio


def write_audio(path: str | os.PathLike[str], audio: Audio, *, subtype: Subtype = "PCM_16") -> None:
    """Write a ``.wav`` or ``.flac`` file, completely or not at all.

    RequestError if the folder cannot be written or the suffix is another one; ValueError if the samples hold NaN or
    infinity, or exceed full scale in a PCM format.
    """
    import soundfile

    path = Path(path)
    container = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if container is None or (container == "FLAC" and subtype == "FLOAT"):
        raise RequestError(f"{path}: cannot write {subtype} there; use a .wav name (or .flac with PCM_16 or PCM_24)")
    samples = audio.samples
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: refusing to write NaN or infinite samples")
    data: npt.NDArray[Any] = samples.T
    if subtype in _PCM_SCALE:
        peak = float(np.abs(samples).max(initial=0.0))
        if peak > 1.0:
            raise ValueError(f"{path}: peak {peak:.4f} is over full scale; lower the gain before writing {subtype}")
        scale = _PCM_SCALE[subtype]
        whole = np.clip(np.rint(samples.T * np.float64(scale)), -scale, scale - 1)
        # libsndfile takes 24 bits as the upper bits of an int32.
        data = whole.astype(np.int16) if subtype == "PCM_16" else whole.astype(np.int32) << 8
    try:
        with (
            atomic_file(path) as draft,
            soundfile.SoundFile(native(draft), "w", audio.rate_hz, audio.channels, subtype, format=container) as file,
        ):
            file.write(data)
    except (OSError, soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
        reason = error.strerror if isinstance(error, OSError) else str(error) or "the disk may be full"
        raise RequestError(f"{path}: cannot be written ({reason}); choose another folder or free space") from error


def resample(samples: npt.NDArray[Any], from_hz: float, to_hz: float) -> Samples:
    """Change the sample rate of ``[..., L]``; returns float32 ``[..., round(L * to_hz / from_hz)]``."""
    import soxr

    if not (from_hz > 0 and to_hz > 0):
        raise ValueError(f"sample rates must be positive, got {from_hz} and {to_hz} Hz")
    source = np.asarray(samples, dtype=np.float32)
    if from_hz == to_hz:
        return source.copy()
    *leading, length = source.shape
    wanted = round(length * to_hz / from_hz)
    result = np.zeros((math.prod(leading), wanted), dtype=np.float32)
    if length:
        for row, signal in zip(result, source.reshape(-1, length), strict=True):
            converted = soxr.resample(np.ascontiguousarray(signal), from_hz, to_hz, quality="HQ")[:wanted]
            row[: len(converted)] = converted
    return result.reshape(*leading, wanted)


def loudness_lufs(audio: Audio) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); ``-inf`` for silence.

    Sound shorter than a gating block is one block. More than five channels are measured as their mean.
    """
    import pyloudnorm

    length = audio.samples.shape[1]
    if length == 0 or not audio.samples.any():
        return -math.inf
    source = audio if audio.channels <= 5 else audio.mono()
    meter = pyloudnorm.Meter(audio.rate_hz, block_size=min(_GATING_BLOCK_S, length / audio.rate_hz))
    return float(meter.integrated_loudness(source.samples.T.astype(np.float64)))


def true_peak_dbtp(audio: Audio) -> float:
    """Largest absolute value of the oversampled signal, in dB re full scale; ``-inf`` for silence."""
    if audio.samples.size == 0 or not audio.samples.any():
        return -math.inf
    padded = np.pad(audio.samples, ((0, 0), (32, 32)))
    oversampled = resample(padded, audio.rate_hz, audio.rate_hz * _OVERSAMPLING)
    return 20 * math.log10(max(float(np.abs(oversampled).max()), float(np.abs(audio.samples).max())))


def limit_peak(audio: Audio, peak_dbtp: float = PEAK_LIMIT_DBTP) -> Audio:
    """Lower the level of the whole signal until its true peak is at most ``peak_dbtp``; never raise it."""
    excess_db = true_peak_dbtp(audio) - peak_dbtp
    return _with_gain(audio, -excess_db) if excess_db > 0 else audio


def mix(
    vocal: Audio,
    accompaniment: Audio,
    *,
    gain_db: float = 0.0,
    match_loudness: bool = True,
    peak_dbtp: float = PEAK_LIMIT_DBTP,
) -> Audio:
    """Add an accompaniment to a vocal, aligned at the first sample: ``[max(channels), L of the vocal]``.

    Args:
        vocal: Sets rate and length of the mix. A mono signal goes to every channel of the mix.
        accompaniment: Same rate; cut or padded with silence to the vocal's length.
        gain_db: Gain of the accompaniment, after loudness matching.
        match_loudness: First bring the accompaniment to the vocal's BS.1770 loudness (where neither is silent).
        peak_dbtp: True peak that the mix may reach; a louder mix is lowered.

    ValueError if the rates differ, or the numbers of channels differ and neither signal is mono.
    """
    if vocal.rate_hz != accompaniment.rate_hz:
        raise ValueError(
            f"cannot mix a vocal at {vocal.rate_hz} Hz with an accompaniment at {accompaniment.rate_hz} Hz; "
            "resample one of them"
        )
    if vocal.channels != accompaniment.channels and 1 not in (vocal.channels, accompaniment.channels):
        raise ValueError(f"cannot mix {vocal.channels} with {accompaniment.channels} channels; make one of them mono")
    if match_loudness:
        target_lufs, own_lufs = loudness_lufs(vocal), loudness_lufs(accompaniment)
        if math.isfinite(target_lufs) and math.isfinite(own_lufs):
            accompaniment = _with_gain(accompaniment, target_lufs - own_lufs)
    length = vocal.samples.shape[1]
    other = _with_gain(accompaniment, gain_db).samples[:, :length]
    other = np.pad(other, ((0, 0), (0, length - other.shape[1])))
    return limit_peak(Audio(vocal.samples + other, vocal.rate_hz), peak_dbtp)


def _with_gain(audio: Audio, gain_db: float) -> Audio:
    return Audio(audio.samples * np.float32(10 ** (gain_db / 20)), audio.rate_hz)


def _read_frames(path: Path, file: SoundFile, begin: int, wanted: int) -> npt.NDArray[np.float32]:
    """``[wanted, channels]`` from frame ``begin`` on; RequestError where the decoder fails or stops early."""
    import soundfile

    try:
        file.seek(begin)
        frames: npt.NDArray[np.float32] = file.read(wanted, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _damaged(path, error.error_string) from error
    if len(frames) == 0 or wanted - len(frames) > _CODEC_DELAY_FRAMES.get(file.format, 0):
        raise _damaged(path, f"{wanted} frames announced from frame {begin} on, {len(frames)} found")
    return frames


def _damaged(path: Path, reason: str) -> RequestError:
    return RequestError(f"{path}: truncated or damaged ({reason.rstrip('.')}); fetch or export the file again")


@contextmanager
def _opened(path: Path, start_s: float, duration_s: float | None) -> Iterator[tuple[SoundFile, float]]:
    """The open file, and the window's start in it: ``start_s``, or 0 if ffmpeg has already cut the window."""
    import soundfile

    try:
        if path.is_dir():
            raise RequestError(f"{path}: is a folder; name an audio file in it")
        missing = missing_bytes(path)
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be opened ({error.strerror or error}); check its permissions") from error
    if missing:
        raise _damaged(path, f"the header announces {missing} bytes more than the file holds")
    if path.stat().st_size == 0:
        raise RequestError(f"{path}: is empty (0 bytes); fetch or export the file again")
    if path.suffix.lower() == ".raw":
        raise RequestError(f"{path}: raw samples have no header; convert the file to WAV")
    with ExitStack() as files:
        try:
            file = files.enter_context(soundfile.SoundFile(native(path)))
        except soundfile.LibsndfileError as error:
            if shutil.which("ffmpeg") is None:
                raise RequestError(
                    f"{path}: libsndfile cannot read it ({error.error_string.rstrip('.')}) and ffmpeg is not "
                    "installed; convert it to WAV, FLAC, OGG or MP3, or install ffmpeg"
                ) from error
            decoded = files.enter_context(ffmpeg_decoded(path, start_s=start_s, duration_s=duration_s))
            file, start_s = files.enter_context(soundfile.SoundFile(native(decoded))), 0.0
        if file.frames <= 0:
            raise RequestError(f"{path}: holds no audio (0 frames); fetch or export the file again")
        yield file, start_s
