"""What `accompany` returns: sound, tokens, and a record from which the same take can be made again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hafm_lightning.audio import PEAK_LIMIT_DBTP, Audio, limit_peak, resample, write_audio
from hafm_lightning.audio import mix as mix_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file

INSTRUMENTAL_FILE, MIX_FILE, RECORD_FILE = "instrumental.wav", "mix.wav", "take.json"


@dataclass(frozen=True)
class MixOptions:
    """How accompaniment and vocal are put together.

    Attributes:
        gain_db: Gain of the accompaniment, after loudness matching.
        match_loudness: Bring the accompaniment to the vocal's BS.1770 loudness first.
        peak_dbtp: True-peak ceiling of accompaniment and mix, in dB below full scale.
        rate_hz: Sample rate of both files; None for the acoustic tokenizer's own (24 kHz).
        channels: 1 or 2 for a mono or stereo mix; None for as many as the vocal has, two at most.
    """

    gain_db: float = 0.0
    match_loudness: bool = True
    peak_dbtp: float = PEAK_LIMIT_DBTP
    rate_hz: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.gain_db):
            raise RequestError(f"gain_db must be a number of decibels, got {self.gain_db}")
        if not self.peak_dbtp <= 0:
            raise RequestError(f"peak_dbtp must be 0 dB or below, got {self.peak_dbtp}")
        if self.rate_hz is not None and not 8000 <= self.rate_hz <= 192_000:
            raise RequestError(f"rate_hz must lie between 8000 and 192000, got {self.rate_hz}")
        if self.channels not in (None, 1, 2):
            raise RequestError(f"channels must be 1 (mono) or 2 (stereo), got {self.channels}")


@dataclass(frozen=True)
class Take:
    """One accompaniment.

    Attributes:
        instrumental: The accompaniment alone, as long as the vocal to the sample; its true peak is limited.
        mix: Vocal and accompaniment.
        tokens: Stream name -> ids int64 ``[K, T]`` of everything heard and written.
        real_time_factor: Seconds of computing for each second of music; below 1 is faster than real time.
        record: Seed, settings and hashes: what `take.json` holds, without the files' own hashes.
    """

    instrumental: Audio
    mix: Audio
    tokens: Mapping[str, NDArray[np.int64]]
    real_time_factor: float
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sample_rate_hz(self) -> int:
        """Samples a second of :attr:`instrumental` and :attr:`mix`."""
        return self.instrumental.rate_hz

    def save(self, folder: str | Path) -> Path:
        """Write `instrumental.wav`, `mix.wav` (16-bit) and `take.json`; each appears whole or not at all.

        Returns:
            The folder.

        Raises:
            RequestError: The folder cannot be made or written.
        """
        target = Path(folder)
        outputs = {}
        for name, audio in ((INSTRUMENTAL_FILE, self.instrumental), (MIX_FILE, self.mix)):
            write_audio(target / name, audio)
            outputs[name] = {"sha256": file_sha256(target / name), "seconds": round(audio.duration_s, 6)}
        write_json(target / RECORD_FILE, {**self.record, "outputs": outputs})
        return target


def mix_take(vocal: Audio, sound: Audio, options: MixOptions) -> tuple[Audio, Audio]:
    """Accompaniment and mix, from the vocal as it came and the decoded sound.

    Both results have ``options.rate_hz`` and exactly the vocal's length at that rate; nothing in them clips.
    """
    rate_hz = sound.rate_hz if options.rate_hz is None else options.rate_hz
    channels = min(2, vocal.channels) if options.channels is None else options.channels
    voice = vocal if channels >= vocal.channels else vocal.mono()
    voice = Audio(
        np.ascontiguousarray(np.broadcast_to(voice.samples, (channels, voice.samples.shape[1]))), voice.rate_hz
    )
    voice = Audio(resample(voice.samples, voice.rate_hz, rate_hz), rate_hz)
    length = voice.samples.shape[1]
    band = resample(sound.samples, sound.rate_hz, rate_hz)[:, :length]
    band = np.pad(band, ((0, 0), (0, length - band.shape[1])))
    instrumental = limit_peak(Audio(band, rate_hz), options.peak_dbtp)
    mixed = mix_audio(
        voice,
        instrumental,
        gain_db=options.gain_db,
        match_loudness=options.match_loudness,
        peak_dbtp=options.peak_dbtp,
    )
    return instrumental, mixed


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def audio_sha256(audio: Audio) -> str:
    """Hex digest over rate, shape and samples."""
    header = json.dumps([audio.rate_hz, list(audio.samples.shape)]).encode()
    return hashlib.sha256(header + np.ascontiguousarray(audio.samples).tobytes()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; RequestError when the folder cannot be written."""
    with ExitStack() as stack:
        try:
            draft = stack.enter_context(atomic_file(path))
        except OSError as error:
            raise RequestError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
