"""The result of `accompany`: sound, tokens, and the record of `take.json`, from which the take can be made again."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hafm_lightning.accompanist.song import Song
from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.accompanist.windows import GRID_S
from hafm_lightning.audio import PEAK_LIMIT_DBTP, Audio, limit_peak, resample, write_audio
from hafm_lightning.audio import mix as mix_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of, write_atomic
from hafm_lightning.processes.locks import LOCK_NAME, one_at_a_time
from hafm_lightning.tokenizers import Tokenizers

INSTRUMENTAL_FILE, MIX_FILE, RECORD_FILE = "instrumental.wav", "mix.wav", "take.json"
TAKE_FORMAT = 1
"""Version of `take.json`."""
MODEL_SETTINGS = ("conditions", "target", "pattern", "conditioning", "relative_position")
"""Settings of each stage's network in a record; all others are in the stage's file."""


@dataclass(frozen=True)
class MixOptions:
    """How accompaniment and vocal are mixed.

    Attributes:
        gain_db: Gain of the accompaniment, after loudness matching.
        match_loudness: Bring the accompaniment to the vocal's BS.1770 loudness first.
        peak_dbtp: True-peak ceiling of accompaniment and mix, in dB below full scale.
        rate_hz: Sample rate of both files; None for that of the acoustic tokenizer (24 kHz).
        channels: 1 or 2 for a mono or stereo mix; None for those of the vocal, two at most.
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
            raise RequestError(f"rate_hz must be between 8000 and 192000, got {self.rate_hz}")
        if self.channels not in (None, 1, 2):
            raise RequestError(f"channels must be 1 (mono) or 2 (stereo), got {self.channels}")


@dataclass(frozen=True)
class Take:
    """One accompaniment.

    Attributes:
        instrumental: The accompaniment alone, exactly as long as the vocal; its true peak is limited.
        mix: Vocal and accompaniment.
        tokens: Stream name -> ids int64 ``[K, T]`` of the vocal and of all stages.
        real_time_factor: Seconds of computing for each second of music; below 1 is faster than real time.
        record: Content of `take.json` without the hashes of the files: seed, settings, hashes of vocal and model.
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
        """Write `instrumental.wav`, `mix.wav` (16-bit) and `take.json`, each atomically; returns the folder.

        A lock keeps takes of several processes apart. RequestError if the folder cannot be written.
        """
        target = Path(folder)
        try:
            with one_at_a_time(target / LOCK_NAME, erase=True):
                outputs = {}
                for name, audio in ((INSTRUMENTAL_FILE, self.instrumental), (MIX_FILE, self.mix)):
                    write_audio(target / name, audio)
                    outputs[name] = {"sha256": sha256_of(target / name), "seconds": round(audio.duration_s, 6)}
                content = json.dumps({**self.record, "outputs": outputs}, indent=1, allow_nan=False)
                write_atomic(target / RECORD_FILE, f"{content}\n".encode())
        except OSError as error:
            raise RequestError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
        return target


def mix_take(vocal: Audio, sound: Audio, options: MixOptions) -> tuple[Audio, Audio]:
    """Accompaniment, and its mix with the vocal: both at ``options.rate_hz``, as long as the vocal, not clipped."""
    rate_hz = sound.rate_hz if options.rate_hz is None else options.rate_hz
    channels = min(2, vocal.channels) if options.channels is None else options.channels
    voice = vocal.samples if channels >= vocal.channels else vocal.mono().samples
    voice = np.ascontiguousarray(np.broadcast_to(voice, (channels, voice.shape[1])))
    voice = resample(voice, vocal.rate_hz, rate_hz)
    length = voice.shape[1]
    band = resample(sound.samples, sound.rate_hz, rate_hz)[:, :length]
    band = np.pad(band, ((0, 0), (0, length - band.shape[1])))
    instrumental = limit_peak(Audio(band, rate_hz), options.peak_dbtp)
    mixed = mix_audio(
        Audio(voice, rate_hz),
        instrumental,
        gain_db=options.gain_db,
        match_loudness=options.match_loudness,
        peak_dbtp=options.peak_dbtp,
    )
    return instrumental, mixed


def take_record(songs: Sequence[Song], index: int, settings: Mapping[str, Any], mix: MixOptions) -> dict[str, Any]:
    """The record of ``songs[index]``, which shared a batch with the others, without model and machine."""
    song = songs[index]
    return {
        "format": TAKE_FORMAT,
        "seed": song.seed,
        "settings": {**settings, "mix": asdict(mix)},
        "vocal": song.source,
        "borders_s": [float((window.start + window.prefix) * GRID_S) for window in song.windows[1:]],
        "batch": {"index": index, "vocals": [s.source for s in songs], "seeds": [s.seed for s in songs]},
    }


def model_facts(
    networks: Sequence[StageNetwork],
    tokenizers: Tokenizers,
    origin: Mapping[str, str | None],
    card: Mapping[str, Any],
    window: int,
) -> dict[str, Any]:
    """Origin and card of a model, and hashes of all its parts; ``window`` in grid units."""
    stages = {}
    for network in networks:
        settings = network.model.config.as_dict()
        stages[network.role] = {"source": network.source, "sha256": network.sha256}
        stages[network.role] |= {name: settings[name] for name in MODEL_SETTINGS}
    return {
        "origin": dict(origin),
        "card": dict(card),
        "stages": stages,
        "tokenizers": {name: identity["sha256"] for name, identity in tokenizers.identities().items()},
        "window_s": float(window * GRID_S),
    }


def machine_facts(device: torch.device, precision: str) -> dict[str, Any]:
    """Everything besides the settings that decides the bits of a take."""
    from hafm_lightning import __version__

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "hafm_lightning": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": name,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
