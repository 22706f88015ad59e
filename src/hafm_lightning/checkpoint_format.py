"""The description of a stage in its checkpoint; files are read as data only and refused by name."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hafm_lightning import limits
from hafm_lightning.errors import RequestError
from hafm_lightning.sealing import check_seal
from hafm_lightning.shards.manifest import stream_description
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers, describe_difference
from hafm_lightning.tokens import STREAMS
from hafm_lightning.untrusted import checked

__all__ = [
    "ADVICE",
    "BEST_FILE",
    "CHECKPOINT_FORMAT",
    "DESCRIPTION",
    "FLOAT_TYPES",
    "METADATA_KEY",
    "ONLY_IN_TRAINING",
    "ROLE_OF_STAGE",
    "RUN_NAME",
    "Description",
    "best_in",
    "check_continues",
    "check_weights",
    "checked_metadata",
    "read_checkpoint",
    "role_of",
    "shape_of",
    "tensor_problem",
    "weights_of",
]

CHECKPOINT_FORMAT = 2
"""Version of a checkpoint: 2 ends with a digest of its bytes (:mod:`hafm_lightning.sealing`)."""
ADVICE = "take another checkpoint of the run, or copy the file again"
METADATA_KEY = "hafm_lightning"
"""Its key in the checkpoint file."""
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types in which Lightning's precisions save weights."""
DESCRIPTION: Mapping[str, type | tuple[type, ...]] = {
    "format": int,
    "stage": str,
    "model": Mapping,
    "guidance_dropout": (int, float),
    "optimizer": Mapping,
    "streams": Mapping,
    "tokenizers": Mapping,
    "tokenizers_folder": (str, type(None)),
    "duration_s": (int, float, type(None)),
}
"""Its entries, as ``Stage.metadata`` writes them."""
ROLE_OF_STAGE = {"SemanticStage": "semantic", "CoarseStage": "coarse", "FineStage": "fine"}
"""Class -> role, for files that do not name the role."""
RUN_NAME = re.compile(r"run-(\d+)")
BEST_FILE = Path("checkpoints", "best.ckpt")
"""The best checkpoint in a run folder."""
ONLY_IN_TRAINING = ("dropout", "checkpoint_layers")
"""Settings of the backbone that change no weight's name or shape."""


@dataclass(frozen=True)
class Description:
    """The same entries, with the types of what they hold."""

    format: int
    stage: str
    model: dict[str, Any]
    guidance_dropout: float
    optimizer: dict[str, Any]
    streams: dict[str, dict[str, int]]
    tokenizers: dict[str, dict[str, Any] | str]
    tokenizers_folder: str | None
    duration_s: float | None
    styles: list[str] = field(default_factory=list)
    vocal_noise_sigma: float | None = None
    role: str | None = None
    class_path: str | None = None


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """The content of a local checkpoint file, data only; ``mapped`` maps the weights instead of reading them.

    Raises:
        RequestError: A URL, a missing or unreadable file, or one that holds code.
    """
    if "://" in str(path):
        raise RequestError(f"{path}: checkpoints are loaded from local files only; download it first")
    if not Path(path).exists() or Path(path).is_dir():
        raise RequestError(f"{path}: no such checkpoint file")
    check_seal(path, what="a checkpoint", advice=ADVICE)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        if not zipfile.is_zipfile(path):
            reason = "it is no file of PyTorch, or cut short"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than data: code or objects, which are not loaded"
        else:
            reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise RequestError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path}: not a checkpoint of this project")
    return content


def checked_metadata(checkpoint: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The stage's description in a checkpoint; RequestError if it is missing, damaged or newer, or streams differ."""
    saved = checkpoint.get(METADATA_KEY)
    if not isinstance(saved, Mapping) or "state_dict" not in checkpoint:
        raise RequestError(f"{where}: not a checkpoint of a hafm_lightning stage (no {METADATA_KEY!r} entry)")
    version = saved.get("format")
    if type(version) is int and version > CHECKPOINT_FORMAT:
        raise RequestError(f"{where}: checkpoint format {version} is newer than {CHECKPOINT_FORMAT}; upgrade")
    odd = [key for key, kind in DESCRIPTION.items() if key not in saved or not isinstance(saved[key], kind)]
    if odd:
        named = ", ".join(f"{key} {saved[key]!r:.40}" if key in saved else f"no {key}" for key in odd[:3])
        raise RequestError(f"{where}: its description of the stage is damaged ({named}); train or export it again")
    if saved["format"] < 1:
        raise RequestError(f"{where}: its description of the stage is damaged (format {version}); export it again")
    described = checked(dict(saved), Description, where, "train or export it again", unknown="ignore")
    if described.duration_s is not None and not 0 < described.duration_s <= limits.current().audio_seconds:
        raise RequestError(f"{where}: its clips of {described.duration_s} s cannot be; train or export it again")
    for name, facts in saved["streams"].items():
        if name not in STREAMS:
            raise RequestError(f"{where}: unknown token stream {name!r}; known: {', '.join(STREAMS)}")
        expected = stream_description(STREAMS[name])
        if facts != expected:
            difference = describe_difference(facts, expected)
            raise RequestError(f"{where}: stream {name!r} differs: {difference}")
    return cast(dict[str, Any], saved)


def role_of(metadata: Mapping[str, Any]) -> str | None:
    """The place in the chain (``semantic``, ``coarse``, ``fine``) of a described stage; None for any other.

    A subclass of a stage has the role of that stage. Files of earlier versions name the class alone.
    """
    stage, role, class_path = str(metadata.get("stage")), metadata.get("role"), metadata.get("class_path")
    if stage in ROLE_OF_STAGE:
        return ROLE_OF_STAGE[stage]
    contradicts = class_path is not None and str(class_path).rpartition(".")[2] != stage
    return None if role is None or contradicts else str(role)


def shape_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network that decide its weights; the others may change while it is trained."""
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping):
        return dict(model)
    return {**model, "backbone": {key: value for key, value in backbone.items() if key not in ONLY_IN_TRAINING}}


def check_continues(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """RequestError unless a run can load the weights of a checkpoint, by the descriptions of both."""
    if saved["stage"] != current["stage"] and (role_of(saved) is None or role_of(saved) != role_of(current)):
        raise RequestError(
            f"the checkpoint holds a {saved['stage']}, this run trains a {current['stage']}; "
            "give the checkpoint of the same stage to --ckpt_path"
        )
    before, now = shape_of(saved["model"]), shape_of(current["model"])
    if before != now:
        raise RequestError(
            f"the checkpoint's network differs from this run's: {describe_difference(before, now)}\n"
            "set it back, or start a new run (without --ckpt_path)"
        )
    check_same_tokenizers(saved["tokenizers"], current["tokenizers"])


def weights_of(state: Mapping[str, Any], network_alone: bool = False) -> dict[str, Any]:
    """The state of a stage without sums of metrics (``train_means.clips``), which a version of torchmetrics may save.

    Args:
        state: Name -> tensor.
        network_alone: Leave out everything beside the network, such as what a subclass adds.
    """
    kept = {name: value for name, value in state.items() if not name.partition(".")[0].endswith("means")}
    return {name: kept[name] for name in kept if name.startswith("model.")} if network_alone else kept


def check_weights(state: Mapping[str, Any], expected: Mapping[str, Tensor], where: str) -> None:
    """RequestError unless a file's weights have the names, shapes and kinds of the described network, and are finite.

    Any of the floating-point types of training fits: integers would be cast in silence, and sound like something else.
    """
    given, wanted = (
        {name: tuple(value.shape) if isinstance(value, Tensor) else type(value) for name, value in weights.items()}
        for weights in (state, expected)
    )
    if given != wanted:
        difference = describe_difference(given, wanted, ("in the file", "in the description"))
        raise RequestError(f"{where}: the weights do not fit the network in its description: {difference}")
    for name, value in state.items():
        kinds = FLOAT_TYPES if expected[name].is_floating_point() else (expected[name].dtype,)
        if problem := tensor_problem(value, kinds):
            raise RequestError(f"{where}: the weights {name} {problem}; {ADVICE}")


def tensor_problem(value: Tensor, dtypes: Collection[torch.dtype]) -> str:
    """Why a tensor from a file cannot be used, or an empty string: its type, its layout, or NaN and infinities."""
    if value.dtype not in dtypes:
        return f"are {value.dtype}, expected {' or '.join(map(str, dtypes))}"
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        return f"are no plain tensor ({value.layout}, {value.device})"
    # NaN and infinities are among the extremes, which one pass finds: twenty times as fast as isfinite().all()
    if value.is_floating_point() and value.numel() and not all(map(math.isfinite, map(float, torch.aminmax(value)))):
        return f"hold {int((~torch.isfinite(value)).sum())} NaN or infinite values"
    return ""


def best_in(runs: str | Path) -> str:
    """The best checkpoint in a run folder, or in the newest run that has one in a folder of runs; empty if none has."""
    folder = Path(runs)
    numbered = [(int(match[1]), path) for path in folder.glob("run-*") if (match := RUN_NAME.fullmatch(path.name))]
    for run in (folder, *(path for _, path in sorted(numbered, reverse=True))):
        if (run / BEST_FILE).is_file():
            return str(run / BEST_FILE)
    return ""
