"""A stage for generation, without Lightning: the plain network and the description in its file.

Both come from a checkpoint of training or from a model folder, which hold data only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hafm_lightning.accompanist.windows import covering_units
from hafm_lightning.checkpoint_format import check_weights, checked_metadata, read_checkpoint, role_of
from hafm_lightning.errors import RequestError
from hafm_lightning.kernels import backend_for
from hafm_lightning.kernels.base import WeightPrecision
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import Tokenizer, content_sha256
from hafm_lightning.tokenizers.compatibility import check_stages
from hafm_lightning.tokens import CLIP_DURATION_S, NULL, STYLE, VOCAL_ACOUSTIC, VOCAL_SEMANTIC, TokenStream

Role = Literal["semantic", "coarse", "fine"]

STAGE_OF_ROLE: Mapping[Role, str] = {"semantic": "SemanticStage", "coarse": "CoarseStage", "fine": "FineStage"}
"""Class of the stage that each checkpoint must hold."""

Precision = Literal["auto", "fp32", "bf16", "int8"]
"""How weights are stored: ``auto`` chooses by device and sizes (:func:`pick_precision`)."""


@dataclass(frozen=True)
class StageNetwork:
    """One stage, ready to write tokens."""

    role: Role
    source: str  # its file, for messages
    model: TokenModel  # in eval mode
    metadata: Mapping[str, Any]  # the description that training wrote
    sha256: str  # over weights and configuration

    @property
    def name(self) -> str:
        """Role and file, for messages."""
        return f"the {self.role} stage ({self.source})"

    @property
    def duration_s(self) -> float:
        """Length of the training clips in seconds."""
        duration_s = self.metadata.get("duration_s")
        return CLIP_DURATION_S if duration_s is None else float(duration_s)

    @property
    def right_context(self) -> int:
        """Frames of the conditions after a frame on which it depends; 0 with a prefix, which holds the whole window.

        With the delay pattern the last codebook of a frame is written ``K - 1`` steps later than the first, and reads
        conditions that much further ahead.
        """
        if self.model.aligned is None:
            return 0
        layout = self.model.layout
        return self.model.aligned.ahead + (layout.target.codebooks - 1 if layout.pattern == "delay" else 0)

    @property
    def right_context_units(self) -> int:
        """:attr:`right_context` in grid units, which hold whole frames of all streams."""
        return covering_units(self.right_context, self.model.layout.target.rate_hz) if self.right_context else 0


def networks_from_checkpoints(
    semantic: str | Path, coarse: str | Path, fine: str | Path | None, stages: int
) -> list[StageNetwork]:
    """The networks in the checkpoints of ``stages`` training runs, in the order in which they write.

    Raises:
        RequestError: A file is missing, unreadable, of another stage or newer, or they do not belong together.
    """
    if stages not in (2, 3):
        raise RequestError(f"stages must be 2 or 3, got {stages}")
    if stages == 3 and fine is None:
        raise RequestError(
            "the fine stage is missing: give its checkpoint, or ask for two stages (stages=2, --stages 2) "
            "to decode the coarse codebooks alone"
        )
    networks = []
    for role, path in zip(STAGE_OF_ROLE, (semantic, coarse, fine)[:stages], strict=False):
        checkpoint = read_checkpoint(str(path))
        metadata = checked_metadata(checkpoint, str(path))
        weights = checkpoint["state_dict"].items()
        state = {name.removeprefix("model."): value for name, value in weights if name.startswith("model.")}
        networks.append(build_network(role, str(path), metadata, state))
    check_networks(networks, None)
    return networks


def build_network(role: Role, source: str, metadata: Mapping[str, Any], state: Mapping[str, Any]) -> StageNetwork:
    """A network from its description and weights (float32 tensors by parameter name); RequestError if they differ."""
    wanted = STAGE_OF_ROLE[role]
    if role_of(metadata) != role:
        raise RequestError(
            f"{source} holds a {metadata.get('stage')!s:.60}, the {role} stage must be a {wanted}; "
            "were two of the files swapped?"
        )
    try:
        # float32 whatever PyTorch's default type is: the weights are
        model = TokenModel(TokenModelConfig.from_dict(metadata["model"])).float()
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{source}: the description of its network cannot be used ({error})") from error
    check_weights(state, model.state_dict(), source)
    model.load_state_dict(dict(state))
    digest = content_sha256(dict(state), {"stage": wanted, "model": metadata["model"]})
    return StageNetwork(role, source, model.eval(), metadata, digest)


def check_networks(networks: Sequence[StageNetwork], tokenizers: Tokenizers | None) -> None:
    """See :func:`~hafm_lightning.tokenizers.compatibility.check_stages`; ``networks`` in the order of writing."""
    identities = None if tokenizers is None else tokenizers.identities()
    check_stages({network.name: network.metadata for network in networks}, identities)


def condition_names(networks: Sequence[StageNetwork]) -> set[str]:
    """Names of all streams that some stage has as a condition."""
    return {stream.name for network in networks for stream in network.model.layout.conditions}


def vocal_streams(networks: Sequence[StageNetwork], tokenizers: Tokenizers) -> list[tuple[TokenStream, Tokenizer]]:
    """The streams that are read from the vocal for these stages, each with its tokenizer."""
    pairs = ((VOCAL_SEMANTIC, tokenizers.semantic), (VOCAL_ACOUSTIC, tokenizers.acoustic))
    return [(stream, tokenizer) for stream, tokenizer in pairs if stream.name in condition_names(networks)]


def tokenizers_folder(networks: Sequence[StageNetwork], named: str | Path | None) -> Path:
    """``named``, or the folder of tokenizers that training read; RequestError if that no longer exists."""
    if named is not None:
        return Path(named)
    folders = [network.metadata.get("tokenizers_folder") for network in networks]
    for folder in folders:
        if folder and Path(folder).is_dir():
            return Path(folder)
    raise RequestError(
        f"the tokenizers' folder of the training no longer exists ({folders[0] or 'not recorded'}); "
        "name the shards' folder `tokenizers` (tokenizers=..., --tokenizers)"
    )


def style_names(networks: Sequence[StageNetwork]) -> list[str]:
    """Names of the ids of the ``style`` stream, from the first stage with that condition; empty without one."""
    styled = (network.metadata for network in networks if STYLE in network.model.layout.conditions)
    return list(next(styled, {}).get("styles") or ())


def style_id(networks: Sequence[StageNetwork], styles: Sequence[str], style: str | None) -> int:
    """Id of a style, NULL for None; RequestError if the model has no style of this name."""
    if style is None:
        return NULL
    if not styles or STYLE.name not in condition_names(networks):
        raise RequestError(f"style {style!r} cannot be used: this model has no styles; leave the style out")
    if style not in styles:
        raise RequestError(f"unknown style {style!r}; this model has: {', '.join(styles)}")
    return list(styles).index(style)


def pick_device(device: str) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU; RequestError for an absent device."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # meta has no values, and other backends may be names alone
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(f"device {device!r} cannot be used ({reason:.160}); use cpu, or auto") from error
    return chosen


def pick_precision(
    precision: Precision, device: torch.device, networks: Sequence[StageNetwork]
) -> tuple[WeightPrecision, str | None]:
    """The type of the networks' weights on a device, ``auto`` resolved; RequestError for int8 on a GPU.

    The second value is a line for the user where the device has no fast operations for the requested precision.
    """
    backend, models = backend_for(device), [network.model for network in networks]
    if precision == "auto":
        return backend.best_precision(models), None
    if precision == "int8" and device.type != "cpu":
        raise RequestError(f"precision int8 is for CPUs, not for {device.type}; use bf16 or fp32")
    return precision, backend.precision_note(precision, models)
