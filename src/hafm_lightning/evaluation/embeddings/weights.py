"""Where networks of the evaluation get their weights: a local file or folder, or the Hub, always by sha256.

A file with another hash than the expected one is refused before it is read. Nothing here runs code that came with
weights: safetensors, or torch files read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from hafm_lightning import files
from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of, write_atomic
from hafm_lightning.tokenizers.hub import fetch_folder

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIGURATION_FILES = ("config.json", "preprocessor_config.json")


def cache_folder() -> Path:
    """Folder for downloaded and converted weights: ``$HAFM_CACHE``, else ``~/.cache/hafm_lightning``."""
    return files.cache_folder()


def check_file(path: Path, sha256: str | None) -> str:
    """The file's sha256, after comparing it with the expected one where that is given.

    Raises:
        RequestError: The file is missing, or has another hash.
    """
    if not path.is_file():
        raise RequestError(f"no weights file {path}; name an existing file, or leave the key out to download it")
    found = sha256_of(path)
    _check_hash(str(path), found, found if sha256 is None else sha256)
    return found


def _check_hash(where: str, found: str, expected: str) -> None:
    if found != expected.lower():
        raise RequestError(
            f"{where}: sha256 is {found}, expected {expected.lower()}; this is another file, or a damaged one: "
            "download it again, or state its own sha256 if you mean to use it"
        )


def download(url: str, target: Path, sha256: str) -> Path:
    """Fetch ``url`` to ``target`` unless it is there already; the content must have ``sha256``.

    Raises:
        RequestError: No connection, or the content has another hash (no file stays then).
    """
    if target.is_file():
        check_file(target, sha256)
        return target
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
    except OSError as error:
        raise RequestError(
            f"cannot download {url} ({error}); fetch it on another machine and name the file in `weights`"
        ) from error
    _check_hash(url, hashlib.sha256(content).hexdigest(), sha256)
    write_atomic(target, content)
    return target


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file, or of a torch file read without running any code in it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise RequestError(f"{path}: holds more than plain tensors; it is refused without running it") from error
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read as weights ({error})") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise RequestError(f"{path}: expected a dictionary of tensors; this is another kind of checkpoint")
    return loaded


def model_folder(source: str, revision: str | None, sha256: str | None) -> tuple[Path, dict[str, str]]:
    """Folder of a model in Hub format, and the sha256 of its weights and of its configuration files.

    ``source`` is a local folder, or a Hub id with a ``revision``. Without ``sha256`` any weights file is accepted.

    Raises:
        RequestError: No such folder or repository, no weights in it, or another hash.
    """
    folder = fetch_folder(source, ("*.json", *WEIGHT_FILES), revision=revision, what="model")
    present = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not present:
        raise RequestError(f"{folder} holds none of {', '.join(WEIGHT_FILES)}; save the model with save_pretrained")
    hashes = {"weights_sha256": check_file(present[0], sha256)}
    for name in CONFIGURATION_FILES:
        if (folder / name).is_file():
            hashes[f"{Path(name).stem}_sha256"] = sha256_of(folder / name)
    return folder, hashes
