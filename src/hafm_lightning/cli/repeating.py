"""``generate --take``: repeat a recorded take, and compare the files.

A `take.json` may come from anybody: it is read within limits and against a schema, and it names vocals and models by
paths, which are opened as data only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hafm_lightning import limits
from hafm_lightning.accompanist import Accompanist, MixOptions
from hafm_lightning.accompanist.stage_network import Role
from hafm_lightning.accompanist.take import RECORD_FILE, TAKE_FORMAT
from hafm_lightning.cli.band_arguments import ROLES
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.untrusted import checked, read_json

ADVICE = "make the take again with --vocal"


@dataclass(frozen=True)
class RecordedVocal:
    """A vocal of the batch."""

    path: str | None
    sha256: str


@dataclass(frozen=True)
class RecordedBatch:
    """The vocals that were accompanied together."""

    index: int
    vocals: list[RecordedVocal]
    seeds: list[int]
    noise_sigmas: list[float]

    def __post_init__(self) -> None:
        if not self.vocals or not len(self.vocals) == len(self.seeds) == len(self.noise_sigmas):
            raise ValueError("each vocal needs a seed and a noise")
        if not 0 <= self.index < len(self.vocals):
            raise ValueError(f"index {self.index} is none of the {len(self.vocals)} vocals")


@dataclass(frozen=True)
class RecordedSettings:
    """What was asked for."""

    guidance: float
    temperature: float
    top_k: int | None
    top_p: float | None
    style: str | None
    overlap_s: float
    stages: Literal[2, 3]
    mix: MixOptions

    @property
    def sampling(self) -> SamplingOptions:
        """Guidance and sampling; ValueError if one is out of range."""
        return SamplingOptions(self.guidance, self.temperature, self.top_k, self.top_p)

    def __post_init__(self) -> None:
        _ = self.sampling


@dataclass(frozen=True)
class RecordedStage:
    """Weights of a stage."""

    sha256: str


@dataclass(frozen=True)
class RecordedModel:
    """Where the model came from, and what it was."""

    origin: dict[str, str | None]
    stages: dict[Role, RecordedStage]


@dataclass(frozen=True)
class RecordedMachine:
    """What decides the bits of a take beside the settings."""

    device: str
    precision: Literal["fp32", "bf16", "int8"]
    threads: int

    def __post_init__(self) -> None:
        most = limits.current().threads
        if not 1 <= self.threads <= most:
            raise ValueError(f"{self.threads} threads, from 1 to {most} are allowed")


@dataclass(frozen=True)
class RecordedOutput:
    """A written file."""

    sha256: str
    seconds: float


@dataclass(frozen=True)
class Record:
    """The parts of a `take.json` that are needed to repeat the take."""

    batch: RecordedBatch
    settings: RecordedSettings
    model: RecordedModel
    machine: RecordedMachine
    outputs: dict[str, RecordedOutput]


def repeat(record_path: Path, out: Path, model: str | None) -> int:
    """Repeat a recorded take into ``out``, with the recorded model or another model folder, and compare the files.

    Returns:
        0 when both files are the same bit for bit, else 1.

    Raises:
        RequestError: Not a take, or its vocal or model is gone or has changed.
    """
    record, written = read_record(record_path)
    vocals = []
    for vocal in record.batch.vocals:
        if vocal.path is None:
            raise RequestError(f"{record_path}: the vocal was sound in memory, so there is no file to read")
        path = Path(vocal.path)
        if not path.is_file():
            raise RequestError(f"{record_path}: the vocal {vocal.path} no longer exists")
        if sha256_of(path) != vocal.sha256:
            raise RequestError(f"{record_path}: the vocal {vocal.path} has changed since the take")
        vocals.append(path)
    torch.set_num_threads(record.machine.threads)
    takes = recorded_band(record, model).accompany_batch(
        vocals,
        seeds=record.batch.seeds,
        options=record.settings.sampling,
        style=record.settings.style,
        overlap_s=record.settings.overlap_s,
        vocal_noise=record.batch.noise_sigmas,
        mix=record.settings.mix,
    )
    take = takes[record.batch.index]
    folder = take.save(out)
    print(take.summary(folder), flush=True)
    again = {
        name: RecordedOutput(**facts)
        for name, facts in json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))["outputs"].items()
    }
    if again == record.outputs:
        print("identical: both files are the same, bit for bit", file=sys.stderr)
        return 0
    then, now = written["machine"], take.record["machine"]
    changed = [f"{name}: {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
    differences = ", ".join(changed) or "none recorded"
    print(f"the files differ from the recorded ones; differences of the machine: {differences}", file=sys.stderr)
    return 1


def recorded_band(record: Record, model: str | None) -> Accompanist:
    """The model of a record, checked by its hashes; ``model`` replaces the recorded folder."""
    origin = record.model.origin
    runs_as: dict[str, Any] = {
        "stages": record.settings.stages,
        "device": record.machine.device,
        "precision": record.machine.precision,
    }
    if model is not None:
        band = Accompanist.from_pretrained(model, **runs_as)
    elif origin.get("model") is not None:
        band = Accompanist.from_pretrained(str(origin["model"]), revision=origin.get("revision"), **runs_as)
    elif origin.get("semantic") is not None and origin.get("coarse") is not None:
        files: dict[str, Any] = {name: origin.get(name) for name in (*ROLES, "tokenizers")}
        band = Accompanist.from_checkpoints(**files, **runs_as)
    else:
        raise RequestError("the take does not name the source of its model; name a model folder with --model")
    for network in band.networks:
        recorded = record.model.stages.get(network.role)
        if recorded is None or network.sha256 != recorded.sha256:
            then = "none" if recorded is None else recorded.sha256[:12]
            raise RequestError(
                f"{network.source}: these are not the weights of the take "
                f"(sha256 {network.sha256[:12]}, recorded {then}); name the right model with --model"
            )
    return band


def read_record(path: Path) -> tuple[Record, Mapping[str, Any]]:
    """A `take.json`, and its content as it is; RequestError when it is missing, damaged, older or newer."""
    if not path.is_file():
        raise RequestError(f"--take {path}: no such file; name a {RECORD_FILE}")
    content = read_json(path, what="record of a take", advice=ADVICE)
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise RequestError(f"--take {path}: not a take of this program (no format); name a {RECORD_FILE}")
    if version > TAKE_FORMAT:
        raise RequestError(f"--take {path}: format {version} is newer than {TAKE_FORMAT}; upgrade hafm_lightning")
    if version < TAKE_FORMAT:
        raise RequestError(
            f"--take {path}: format {version} is of an earlier version, with other windows and another mix; "
            "repeat it with that version, or make it again with --vocal"
        )
    return checked(content, Record, path, ADVICE, unknown="ignore"), content
