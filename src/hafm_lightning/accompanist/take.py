"""The result of `accompany`: sound, tokens, and the record of `take.json`, from which the take can be made again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hafm_lightning.accompanist.mixing import Mixed, MixOptions
from hafm_lightning.accompanist.song import Song
from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.accompanist.windows import GRID_S
from hafm_lightning.audio import Audio
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file
from hafm_lightning.processes.locks import LOCK_NAME, one_at_a_time
from hafm_lightning.tokenizers import Tokenizers

INSTRUMENTAL_FILE, MIX_FILE, RECORD_FILE = "instrumental.wav", "mix.wav", "take.json"
TAKE_FORMAT = 2
"""Version of `take.json`. Takes of format 1 had other windows, no noise on the vocal, and another mix."""
MODEL_SETTINGS = ("conditions", "target", "pattern", "conditioning", "relative_position")
"""Settings of each stage's network in a record; all others are in the stage's file."""


@dataclass(frozen=True)
class Take:
    """One accompaniment.

    Attributes:
        instrumental: The accompaniment as it sounds in the mix, ``[1, L]``, exactly as long as the vocal.
        mix: Vocal and accompaniment.
        decoded: The accompaniment as it was decoded, ``[1, L]`` at the acoustic tokenizer's rate, for measurements: the
            level of :attr:`instrumental` follows the vocal where the limiter works.
        tokens: Stream name -> ids int64 ``[K, T]`` of the vocal and of all stages.
        real_time_factor: Seconds of computing for each second of music; below 1 is faster than real time.
        record: Content of `take.json` without the hashes of the files: seed, settings, hashes of vocal and model.
    """

    instrumental: Audio
    mix: Audio
    decoded: Audio
    tokens: Mapping[str, NDArray[np.int64]]
    real_time_factor: float
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sample_rate_hz(self) -> int:
        """Samples a second of :attr:`instrumental` and :attr:`mix`."""
        return self.instrumental.rate_hz

    def summary(self, folder: Path) -> str:
        """A line about the take that was saved in ``folder``, as JSON."""
        facts = {
            "folder": str(folder),
            "seconds": round(self.instrumental.duration_s, 3),
            "real_time_factor": round(self.real_time_factor, 3),
            "seed": self.record["seed"],
        }
        return json.dumps(facts)

    def _repr_html_(self) -> str:
        """Players of mix and accompaniment, for notebooks; the sound is in the page itself."""
        players = []
        for name, audio in {"mix": self.mix, "accompaniment": self.instrumental}.items():
            data = base64.b64encode(sound_bytes(audio, "FLAC")).decode()
            label = f"{name}, {audio.duration_s:.1f} s"
            player = f'<audio controls aria-label="{label}" src="data:audio/flac;base64,{data}"></audio>'
            players.append(f"<figure><figcaption>{label}</figcaption>{player}</figure>")
        return "".join(players)

    def save(self, folder: str | Path) -> Path:
        """Write `instrumental.wav`, `mix.wav` (16-bit) and `take.json`, all or none of them; returns the folder.

        An earlier take in the folder stays as it is until all three are complete. A lock keeps takes of several
        processes apart. RequestError if the folder cannot be written or the disk is full.
        """
        target = Path(folder)
        sounds = {INSTRUMENTAL_FILE: self.instrumental, MIX_FILE: self.mix}
        contents = {name: sound_bytes(audio, "WAV") for name, audio in sounds.items()}
        outputs = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "seconds": round(sounds[name].duration_s, 6)}
            for name, content in contents.items()
        }
        record = json.dumps({**self.record, "outputs": outputs}, indent=1, allow_nan=False)
        files = {RECORD_FILE: f"{record}\n".encode(), **contents}
        try:
            with one_at_a_time(target / LOCK_NAME, erase=True), ExitStack() as drafts:
                for name, content in files.items():  # the last that is opened is renamed first, the record at the end
                    drafts.enter_context(atomic_file(target / name)).write_bytes(content)
                (target / RECORD_FILE).unlink(missing_ok=True)  # it does not describe a half-replaced take
        except OSError as error:
            reason = error.strerror or str(error)
            raise RequestError(f"{target}: the take cannot be written ({reason}); choose another --out") from error
        return target


def sound_bytes(audio: Audio, container: Literal["WAV", "FLAC"]) -> bytes:
    """A 16-bit WAV or FLAC file; ValueError if the samples hold NaN or infinity, or exceed full scale."""
    import soundfile

    peak = float(np.abs(audio.samples).max(initial=0.0))
    if not peak <= 1.0:
        raise ValueError(f"samples of a take reach {peak:.4f}, full scale is 1")
    whole = np.clip(np.rint(audio.samples.T * np.float64(32768)), -32768, 32767).astype(np.int16)
    content = io.BytesIO()
    soundfile.write(content, whole, audio.rate_hz, subtype="PCM_16", format=container)
    return content.getvalue()


def take_record(
    songs: Sequence[Song], index: int, settings: Mapping[str, Any], mix: MixOptions, mixed: Mixed
) -> dict[str, Any]:
    """The record of ``songs[index]``, which shared a batch with the others, without model and machine."""
    song = songs[index]
    return {
        "format": TAKE_FORMAT,
        "seed": song.seed,
        "settings": {**settings, "mix": asdict(mix)},
        "vocal": song.source,
        "vocal_noise_sigma": song.noise_sigma,
        "gains_db": {
            "voice": round(mixed.voice_gain_db, 3),
            "band": round(mixed.band_gain_db, 3),
            "limiter": -round(mixed.most_limited_db, 3),
        },
        "borders_s": [float((window.start + window.prefix) * GRID_S) for window in song.windows[1:]],
        "batch": {"index": index, "vocals": [s.source for s in songs], "seeds": [s.seed for s in songs]}
        | {"noise_sigmas": [s.noise_sigma for s in songs]},
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
