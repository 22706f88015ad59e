"""Sound in and out: read, write, resample, loudness, mix. Every rate is in Hz, every time in s.

Choices:

* Files go through libsndfile (wav, flac, ogg, mp3, aiff, ...), the rest through ffmpeg where it is installed. A file
  that is missing, damaged or holds NaN is refused by name: one bad file must not become a silent clip in a shard.
* Headers are not believed: lengths are compared with the bytes, and everything with :mod:`hafm_lightning.limits`.
* Several channels become one as their mean, or as the strongest if they cancel each other there (:meth:`Audio.mono`).
* One resampler, soxr at quality HQ. Resampling changes tokens, so :data:`RESAMPLER` is written into every manifest.
* PCM is scaled by 2^(bits - 1) in both directions, so reading and writing a file again gives the same samples.
* Loudness is ITU-R BS.1770-4 (gated, K-weighted), the peak limit is on the true peak (4 x oversampled).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio.decoding import native
from hafm_lightning.audio.reading import probe_audio, read_audio
from hafm_lightning.audio.sound import RESAMPLER, Audio, AudioInfo, Samples, SoundWarning, in_phase, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file

__all__ = [
    "PEAK_LIMIT_DBTP",
    "RESAMPLER",
    "Audio",
    "AudioInfo",
    "Samples",
    "SoundWarning",
    "Subtype",
    "in_phase",
    "limit_peak",
    "loudness_lufs",
    "mix",
    "probe_audio",
    "read_audio",
    "resample",
    "true_peak_dbtp",
    "write_audio",
]

Subtype = Literal["PCM_16", "PCM_24", "FLOAT"]

PEAK_LIMIT_DBTP = -1.0
"""Default true-peak ceiling of everything that is mixed, in dB below full scale."""

_PCM_SCALE = {"PCM_16": 1 << 15, "PCM_24": 1 << 23}
_OVERSAMPLING = 4
_GATING_BLOCK_S = 0.4  # of BS.1770


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
