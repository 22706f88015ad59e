"""What `take.json` holds: enough to make a take again, and to know what it was made with."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from hafm_lightning.accompanist.song import Song
from hafm_lightning.accompanist.stage_network import StageNetwork
from hafm_lightning.accompanist.take import MixOptions
from hafm_lightning.accompanist.windows import GRID_S
from hafm_lightning.tokenizers import Tokenizers

TAKE_FORMAT = 1
"""Version of `take.json`."""
MODEL_SETTINGS = ("conditions", "target", "pattern", "conditioning", "relative_position")
"""What a record says of each stage's network; all of it is in the stage's file."""


def take_record(
    songs: Sequence[Song],
    index: int,
    settings: Mapping[str, Any],
    mix: MixOptions,
    model: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of ``songs[index]``, which rode together with the others."""
    song = songs[index]
    return {
        "format": TAKE_FORMAT,
        "seed": song.seeds.seed,
        "settings": {**settings, "mix": asdict(mix)},
        "vocal": song.source,
        "borders_s": [float((window.start + window.known) * GRID_S) for window in song.windows[1:]],
        "batch": {
            "index": index,
            "vocals": [song.source for song in songs],
            "seeds": [song.seeds.seed for song in songs],
        },
        "model": dict(model),
        "machine": dict(machine),
    }


def model_facts(
    networks: Sequence[StageNetwork],
    tokenizers: Tokenizers,
    origin: Mapping[str, str | None],
    card: Mapping[str, Any],
    window: int,
) -> dict[str, Any]:
    """Which model it was: where from, its card, and hashes of all its parts; ``window`` in grid units."""
    return {
        "origin": dict(origin),
        "card": dict(card),
        "stages": {
            network.role: {
                "source": network.source,
                "sha256": network.sha256,
                **{name: network.model.config.as_dict()[name] for name in MODEL_SETTINGS},
            }
            for network in networks
        },
        "tokenizers": {name: identity["sha256"] for name, identity in tokenizers.identities().items()},
        "window_s": float(window * GRID_S),
    }


def machine_facts(device: torch.device, precision: str) -> dict[str, Any]:
    """What a take's bits depend on besides its settings."""
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
