"""One folder that holds and describes a whole model: for sharing, and for machines without Lightning.

    config.json                  stages, streams, tokenizer identities, sha256 of every stage and file but README.md
    generation_config.json       recommended sampling, noise of training
    semantic.safetensors ...     weights of each stage, float32
    tokenizers/{semantic,acoustic}/
    README.md                    the model card

Everything is data. A folder is written atomically; on reading, every file is checked against its digest, and a file
below ``tokenizers`` that is not listed is refused. The card may be edited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.accompanist.recommended import Recommended, read_recommended, write_recommended
from hafm_lightning.accompanist.stage_network import STAGE_OF_ROLE, Role, StageNetwork, build_network, check_networks
from hafm_lightning.checkpoint_format import tensor_problem
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_folder, names_in, sha256_of, sha256_of_json
from hafm_lightning.sealing import note_without_digest
from hafm_lightning.tokenizers import Tokenizers, load_tokenizers, save_tokenizers
from hafm_lightning.tokenizers.base import check_file_digests, file_digests
from hafm_lightning.tokenizers.hub import fetch_folder
from hafm_lightning.untrusted import check_file, checked, child, read_json

MODEL_FORMAT = 2
"""Version of the folder's layout; a reader refuses newer ones. Version 1 has no digests but those of the weights."""
ADVICE = "fetch or export the model again"
CONFIG_FILE, CARD_FILE, TOKENIZERS_FOLDER = "config.json", "README.md", "tokenizers"
KIND = "hafm_lightning"
HUB_PATTERNS = ("*.json", "*.safetensors", "*.md")
"""Files that are fetched from the Hub: data alone."""
TRAINING_ONLY = ("optimizer", "tokenizers_folder", "format")
"""Parts of a checkpoint's description that a model folder leaves out."""


@dataclass(frozen=True)
class CardFacts:
    """Facts for the model card that the model itself does not hold."""

    name: str = "Vocal-to-accompaniment model"
    data: str = "not stated"  # that the model was trained on
    license: str = "other"  # of the weights: an SPDX identifier, or `other`
    metrics: Mapping[str, float] = field(default_factory=dict)  # from an evaluation
    notes: str = ""  # Markdown for the end of the card


@dataclass(frozen=True)
class ModelFolder:
    """A loaded model folder; ``card`` holds its data, licence and metrics."""

    networks: list[StageNetwork]
    tokenizers: Tokenizers
    styles: list[str]
    card: dict[str, Any]
    recommended: Recommended


def write_model_folder(
    folder: str | Path,
    networks: Sequence[StageNetwork],
    tokenizers: Tokenizers,
    *,
    styles: Sequence[str] = (),
    card: CardFacts = CardFacts(),
    recommended: Recommended = Recommended(),
    include_tokenizer_weights: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write stages and tokenizers as one folder.

    Args:
        folder: The folder to write.
        networks: Stages in the order in which they write, with float32 weights.
        tokenizers: The pair of their training.
        styles: Names of the ids of the ``style`` stream.
        card: Facts for the model card.
        recommended: Sampling with which the model sounds best, and the noise of its training.
        include_tokenizer_weights: Also copy HuBERT's and EnCodec's weights, so that nothing else is needed.
        overwrite: Replace a model folder.

    Raises:
        RequestError: The parts do not belong together, or ``folder`` is occupied.
    """
    from safetensors.torch import save_file

    check_networks(networks, tokenizers)
    target = Path(folder)

    def is_complete() -> bool:
        names = names_in(target)
        if names and CONFIG_FILE not in names:
            raise RequestError(f"{target} exists and is no model folder; name another one")
        if names and not overwrite:
            raise RequestError(f"{target} already holds a model; name another folder, or replace it with --overwrite")
        return False

    is_complete()  # refused before the weights are written
    with atomic_folder(target, is_complete) as draft:
        stages = {}
        for network in networks:
            name = f"{network.role}.safetensors"
            weights = network.model.state_dict().items()
            state = {key: value.detach().float().cpu().contiguous() for key, value in weights}
            save_file(state, draft / name, metadata={"format": "pt"})
            description = {key: value for key, value in network.metadata.items() if key not in TRAINING_ONLY}
            entry = description | {"file": name, "sha256": sha256_of(draft / name)}
            stages[network.role] = entry | {"digest": _entry_digest(entry)}
        pair = (tokenizers.semantic, tokenizers.acoustic)
        save_tokenizers(*pair, draft / TOKENIZERS_FOLDER, include_weights=include_tokenizer_weights)
        config = {
            "kind": KIND,
            "format": MODEL_FORMAT,
            "stages": stages,
            "tokenizers": tokenizers.identities(),
            "styles": list(styles),
            "files": file_digests(draft / TOKENIZERS_FOLDER),
            "card": {"data": card.data, "license": card.license, "metrics": dict(card.metrics)},
        }
        write_recommended(draft, recommended)
        (draft / CONFIG_FILE).write_text(json.dumps(config, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (draft / CARD_FILE).write_text(model_card(networks, tokenizers, card), encoding="utf-8")
    return target


def read_model_folder(
    folder_or_hub_id: str | Path, *, revision: str | None = None, stages: int = 3, device: torch.device | str = "cpu"
) -> ModelFolder:
    """Load a model folder, or ``owner/name`` from the Hub at ``revision``; ``device`` is that of the tokenizers.

    Raises:
        RequestError: The folder is missing, damaged, of a newer format, or without a requested stage.
    """
    folder = fetch_folder(folder_or_hub_id, HUB_PATTERNS, revision=revision, what="model")
    config = read_config(folder)
    described = config["stages"]
    roles = list(STAGE_OF_ROLE)[: 2 if stages == 2 else 3]
    missing = [role for role in roles if role not in described]
    if missing:
        raise RequestError(
            f"{folder} holds no {missing[0]} stage, only {', '.join(described)}"
            + ("; ask for two stages (stages=2, --stages 2) to use it" if missing == ["fine"] else "")
        )
    if config["format"] == 1:
        note_without_digest(folder / CONFIG_FILE)
    else:
        check_file_digests(folder / TOKENIZERS_FOLDER, config.get("files", {}), ADVICE)
    networks = [_read_network(folder, role, described[role]) for role in roles]
    tokenizers = load_tokenizers(folder / TOKENIZERS_FOLDER, device=device)
    for network in networks:
        if (names := list(network.metadata.get("styles") or ())) and names != config["styles"]:
            raise RequestError(f"{folder / CONFIG_FILE}: its styles are not those of {network.name}; {ADVICE}")
    styles, card = list(config["styles"]), dict(config.get("card") or {})
    return ModelFolder(networks, tokenizers, styles, card, read_recommended(folder, networks))


@dataclass(frozen=True)
class Config:
    """The content of ``config.json``; entries of newer versions are ignored."""

    kind: str
    format: int
    stages: dict[str, dict[str, Any]]  # role -> description, `file`, `sha256`, `digest`
    tokenizers: dict[str, dict[str, Any]]
    styles: list[str]
    files: dict[str, str] = field(default_factory=dict)  # below `tokenizers` -> sha256; version 2
    card: dict[str, Any] | None = None


@dataclass(frozen=True)
class StageEntry:
    """One stage in ``config.json``, as far as it is used."""

    stage: str
    model: dict[str, Any]
    streams: dict[str, dict[str, int]]
    tokenizers: dict[str, dict[str, Any]]
    file: str
    sha256: str
    duration_s: float | None = None
    guidance_dropout: float = 0.0
    styles: list[str] = field(default_factory=list)
    vocal_noise_sigma: float | None = None


def read_config(folder: str | Path) -> dict[str, Any]:
    """The description of a model folder; RequestError when it is missing, damaged or newer."""
    path = Path(folder) / CONFIG_FILE
    if not path.exists():
        raise RequestError(f"{folder} is no model folder: {CONFIG_FILE} is missing; make one with `export`")
    content = read_json(path, what="the description of a model", advice=ADVICE)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise RequestError(f"{path} does not describe a model of this project; make one with `export`")
    version = content.get("format")
    if type(version) is int and version > MODEL_FORMAT:
        raise RequestError(f"{path}: model format {version} is newer than {MODEL_FORMAT}; upgrade hafm_lightning")
    config = checked(content, Config, path, ADVICE, unknown="ignore")
    if config.format < 1:
        raise RequestError(f"{path} is damaged (format {config.format}); {ADVICE}")
    for role, entry in config.stages.items():
        checked(entry, StageEntry, f"{path}: the {role:.40} stage", ADVICE, unknown="ignore")
    return dict(content)


def _entry_digest(entry: Mapping[str, Any]) -> str:
    return sha256_of_json({key: value for key, value in entry.items() if key != "digest"})


def _read_network(folder: Path, role: Role, description: Mapping[str, Any]) -> StageNetwork:
    """One stage from its weights file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = str(description["file"])
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise RequestError(f"{folder}: the weights file {name!r:.80} must be a safetensors file in the folder")
    path = child(folder, name, "the weights file of a stage")
    check_file(path, what="a weights file", advice=ADVICE)
    try:
        state = load_file(path)
        digest = sha256_of(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path} cannot be read ({error}); {ADVICE}") from error
    if digest != description["sha256"]:
        raise RequestError(
            f"{path}: the file has sha256 {digest[:12]}, {CONFIG_FILE} lists {description['sha256'][:12]!a}; {ADVICE}"
        )
    for key, value in state.items():
        if problem := tensor_problem(value, (torch.float32,)):
            raise RequestError(f"{path}: the weights {key:.80} {problem}; {ADVICE}")
    network = build_network(role, str(path), description, state)
    if "digest" in description and description["digest"] != _entry_digest(description):
        raise RequestError(f"{folder / CONFIG_FILE}: the description of the {role} stage was changed; {ADVICE}")
    return network


def model_card(networks: Sequence[StageNetwork], tokenizers: Tokenizers, card: CardFacts) -> str:
    """The folder's README.md: Hub metadata, stages, tokenizers, data, licence, metrics, how to use it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("hafm_lightning.accompanist")
    page = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    millions = {n.role: sum(parameter.numel() for parameter in n.model.parameters()) / 1e6 for n in networks}
    return page.get_template("model_card.md").render(
        card=card, networks=networks, millions=millions, tokenizers=tokenizers.identities()
    )
