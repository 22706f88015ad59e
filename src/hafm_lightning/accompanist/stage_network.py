"""A stage as generation needs it: the plain network and what it says of itself. No Lightning here.

Read from a checkpoint of training or from a model folder; both are data only. Three networks and two tokenizers are
checked against each other before anything is computed, and what does not belong together is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.checkpoint_format import checked_metadata, describe_difference, read_checkpoint
from hafm_lightning.errors import RequestError
from hafm_lightning.kernels import backend_for
from hafm_lightning.kernels.base import WeightPrecision
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import content_sha256
from hafm_lightning.tokens import CLIP_DURATION_S, NULL, STYLE, VOCAL_ACOUSTIC, VOCAL_SEMANTIC

Role = Literal["semantic", "coarse", "fine"]

STAGE_OF_ROLE: Mapping[Role, str] = {"semantic": "SemanticStage", "coarse": "CoarseStage", "fine": "FineStage"}
"""What each checkpoint must hold, by the name that training gave it."""
GIVEN_STREAMS = (VOCAL_SEMANTIC.name, VOCAL_ACOUSTIC.name, STYLE.name)
"""Conditions that come from the request; all others are written by an earlier stage."""
WEIGHTS_PREFIX = "model."
"""What stands before the network's parameters in a training checkpoint."""

Precision = Literal["auto", "fp32", "bf16", "int8"]
"""How weights are stored: ``auto`` chooses by device and sizes (:func:`pick_precision`)."""


@dataclass(frozen=True)
class StageNetwork:
    """One stage, ready to write tokens.

    Attributes:
        role: ``semantic``, ``coarse`` or ``fine``.
        source: File that it came from, for messages.
        model: The network, in eval mode.
        metadata: What training said of it: plain values.
        sha256: Hex digest over its weights and configuration.
    """

    role: Role
    source: str
    model: TokenModel
    metadata: Mapping[str, Any]
    sha256: str

    @property
    def duration_s(self) -> float:
        """Length of the clips that it was trained on, in seconds."""
        duration_s = self.metadata.get("duration_s")
        return CLIP_DURATION_S if duration_s is None else float(duration_s)

    @property
    def look_ahead_s(self) -> float:
        """How far ahead of a frame it hears, in seconds; 0 with a prefix, which holds the whole window."""
        return self.model.config.look_ahead_s if self.model.aligned is not None else 0.0


def network_from_checkpoint(role: Role, path: str | Path) -> StageNetwork:
    """The network in a training checkpoint.

    Raises:
        RequestError: Not a local checkpoint of that stage, unreadable, or of a newer format.
    """
    checkpoint = read_checkpoint(path)
    metadata = checked_metadata(checkpoint, str(path))
    state = {
        name.removeprefix(WEIGHTS_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(WEIGHTS_PREFIX)
    }
    return build_network(role, str(path), metadata, state)


def build_network(role: Role, source: str, metadata: Mapping[str, Any], state: Mapping[str, Any]) -> StageNetwork:
    """A network from its description and weights (float32 tensors by parameter name); RequestError if they differ."""
    wanted = STAGE_OF_ROLE[role]
    if metadata["stage"] != wanted:
        raise RequestError(
            f"{source} holds a {metadata['stage']}, the {role} stage must be a {wanted}; were two of the files swapped?"
        )
    try:
        # float32 whatever PyTorch's default type is: the weights are
        model = TokenModel(TokenModelConfig.from_dict(metadata["model"])).float()
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{source}: the description of its network cannot be used ({error})") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        raise RequestError(
            f"{source}: the weights do not fit the network they describe: " + describe_difference(found, expected)
        )
    model.load_state_dict(dict(state))
    digest = content_sha256(dict(state), {"stage": wanted, "model": metadata["model"]})
    return StageNetwork(role, source, model.eval(), metadata, digest)


def check_belonging(networks: Sequence[StageNetwork], tokenizers: Tokenizers | None) -> None:
    """Refuse stages and tokenizers that do not belong together.

    Args:
        networks: In the order in which they write.
        tokenizers: The pair that will turn sound into tokens and back; None checks the stages alone.

    Raises:
        RequestError: Names the two that differ, and in what; or a condition that nobody provides.
    """
    provided = set(GIVEN_STREAMS)
    for network in networks:
        layout = network.model.layout
        missing = [stream.name for stream in layout.conditions if stream.name not in provided]
        if missing:
            raise RequestError(
                f"the {network.role} stage ({network.source}) needs {missing[0]!r}, which no stage before it writes"
            )
        provided.add(layout.target.name)
    first = networks[0]
    for network in networks:
        identities = network.metadata["tokenizers"]
        if not identities:
            raise RequestError(
                f"{network.source} does not say which tokenizers its data came from; "
                "train it on shards made by `prepare`"
            )
        if identities != first.metadata["tokenizers"]:
            raise RequestError(
                f"the {first.role} and {network.role} stages were trained on tokens of different tokenizers "
                f"({first.source}, {network.source}): "
                + describe_difference(first.metadata["tokenizers"], identities).replace(
                    "in the checkpoint", "in the first"
                )
            )
    styled = [network for network in networks if STYLE in network.model.layout.conditions]
    for network in styled[1:]:
        if list(network.metadata.get("styles") or ()) != list(styled[0].metadata.get("styles") or ()):
            raise RequestError(
                f"the {styled[0].role} and {network.role} stages ({styled[0].source}, {network.source}) were trained "
                "with other styles; train them on the same shards"
            )
    if tokenizers is None:
        return
    if first.metadata["tokenizers"] != tokenizers.identities():
        raise RequestError(
            "these tokenizers are not the ones that the stages were trained with: "
            + describe_difference(first.metadata["tokenizers"], tokenizers.identities())
        )
    for name, identity in tokenizers.identities().items():
        if identity["resampler"] != RESAMPLER:
            raise RequestError(
                f"the {name} tokenizer was fed by resampler {identity['resampler']!r}, this program has {RESAMPLER!r}; "
                "prepare the shards and train again"
            )


def stage_files(
    semantic: str | Path, coarse: str | Path, fine: str | Path | None, stages: int
) -> list[tuple[Role, str | Path]]:
    """Role and file of the stages asked for."""
    if stages not in (2, 3):
        raise RequestError(f"stages must be 2 or 3, got {stages}")
    if stages == 3 and fine is None:
        raise RequestError(
            "the fine stage is missing: give its checkpoint, or ask for two stages (stages=2, --stages 2) "
            "to hear the coarse codebooks alone"
        )
    paths: list[tuple[Role, str | Path]] = [("semantic", semantic), ("coarse", coarse)]
    return [*paths, ("fine", fine)] if stages == 3 and fine is not None else paths


def tokenizers_folder(networks: Sequence[StageNetwork], named: str | Path | None) -> Path:
    """Where the tokenizers are: as named, or where training found them."""
    if named is not None:
        return Path(named)
    folders = [network.metadata.get("tokenizers_folder") for network in networks]
    found = next((Path(folder) for folder in folders if folder and Path(folder).is_dir()), None)
    if found is None:
        raise RequestError(
            f"the tokenizers are no longer where training found them ({folders[0] or 'not recorded'}); "
            "name the shards' folder `tokenizers` (tokenizers=..., --tokenizers)"
        )
    return found


def sampling_of(guidance: float, temperature: float, top_k: int | None, top_p: float | None) -> SamplingOptions:
    """Sampling options; a value out of range is the request's fault."""
    try:
        return SamplingOptions(guidance, temperature, top_k, top_p)
    except ValueError as error:
        raise RequestError(str(error)) from error


def style_names(networks: Sequence[StageNetwork]) -> list[str]:
    """Names of the ids of the ``style`` stream, as the stages that hear it were trained; none where no stage does."""
    styled = [network for network in networks if STYLE in network.model.layout.conditions]
    return list(styled[0].metadata.get("styles") or ()) if styled else []


def style_id(networks: Sequence[StageNetwork], styles: Sequence[str], style: str | None) -> int:
    """Id of a style; NULL, the learned "no condition", when none is asked for.

    Raises:
        RequestError: The stages take no styles, or do not know this one.
    """
    if style is None:
        return NULL
    if not any(STYLE in network.model.layout.conditions for network in networks):
        raise RequestError(f"style {style!r} was asked for, but these stages were trained without styles")
    if style not in styles:
        raise RequestError(f"unknown style {style!r}; this model knows: {', '.join(styles) or 'no names'}")
    return list(styles).index(style)


def pick_device(device: str) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU; a device that is not there is a RequestError."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); use cpu, or auto"
        ) from error
    return chosen


def pick_precision(
    precision: Precision, device: torch.device, networks: Sequence[StageNetwork] = ()
) -> WeightPrecision:
    """How the weights of ``networks`` are stored on ``device``: as asked for, or what is best for this device.

    Raises:
        RequestError: int8 was asked for on a GPU.
    """
    if precision == "auto":
        return backend_for(device).best_precision([network.model for network in networks])
    if precision == "int8" and device.type != "cpu":
        raise RequestError(f"precision int8 is for CPUs, not for {device.type}; use bf16 or fp32")
    return precision


def precision_note(precision: Precision, device: torch.device, networks: Sequence[StageNetwork]) -> str | None:
    """One line where a precision that was asked for by name is not to be had in the fast way: what is done instead."""
    if precision == "auto":
        return None
    return backend_for(device).precision_note(precision, [network.model for network in networks])
