"""Pretrained weights of the paper's tokenizers: how they are loaded and run (:mod:`hafm_lightning.tokenizers.hub`
finds them).

Choices:

* The digest of weights is taken over the arrays alone, not over their names or their file: the same
  weights have the same digest from safetensors or a converted checkpoint, through transformers or another library.
* Tokens are made in full float32. A GPU's TF32 and autocast would flip ids, so both are off while a tokenizer runs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import MODEL_FOLDER, TokenizerIdentity
from hafm_lightning.tokenizers.hub import UnreachableWeightsError


def saved_source(
    folder: str | Path, origin: Mapping[str, Any], weights: str | Path | None
) -> tuple[str | Path, str | None]:
    """Source of the weights of the tokenizer saved in ``folder``, and their revision.

    Args:
        folder: The tokenizer's folder.
        origin: Their ``source`` and ``revision`` when the tokenizer was made.
        weights: Where they are now; None takes those inside the folder, or else the origin's.
    """
    if weights is not None:
        return weights, None
    inside = Path(folder) / MODEL_FOLDER
    return (inside, None) if inside.is_dir() else (origin["source"], origin["revision"])


def check_weights(source: str | Path, sha256: str, folder: str | Path, identity: TokenizerIdentity) -> None:
    """Raise RequestError unless the weights at ``source`` are those with which the tokenizer in ``folder`` was made."""
    expected = identity.settings["weights_sha256"]
    if sha256 != expected:
        raise RequestError(
            f"the weights at {source} have sha256 {sha256[:12]}, {folder} was made with {expected[:12]}; "
            "name the weights it was made with"
        )


def load_config(name: str, revision: str | None, model_type: str) -> Any:
    """Configuration of the model ``name``, a folder or Hub id.

    Raises:
        RequestError: Not reachable, or of another type of model.
    """
    from transformers import AutoConfig

    with _readable_errors(name, revision, model_type):
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
    if config.model_type != model_type:
        raise RequestError(f"{name} holds a model of type {config.model_type!r}, expected {model_type!r}")
    return config


def load_pretrained(
    model_class: Any, name: str, revision: str | None, unused: Iterable[str] = (), **config: Any
) -> Any:
    """A transformers model in eval mode and float32, with every weight taken from its source.

    Args:
        model_class: Class with ``from_pretrained``.
        name: Local folder or Hub id.
        revision: Of the Hub id.
        unused: Names of weights that may be missing because they are not used.
        config: Values of the model's configuration to override.

    Raises:
        RequestError: Weights not reachable, damaged, or not those of this class.
    """
    with _readable_errors(name, revision, model_class.__name__), _quiet_transformers():
        model, info = model_class.from_pretrained(
            name, revision=revision or "main", output_loading_info=True, dtype=torch.float32, **config
        )
    missing = sorted(set(info["missing_keys"]) - set(unused))
    if missing:
        raise RequestError(
            f"{len(missing)} weights of {model_class.__name__} are missing in {name}, such as {missing[0]!r}; "
            "it holds another model: name the right one"
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _readable_errors(name: str, revision: str | None, what: str) -> Iterator[None]:
    """Turn what transformers raises while loading ``what`` into a RequestError that says what to do."""
    from safetensors import SafetensorError

    where = f"{name} (revision {revision})" if revision else name
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UnreachableWeightsError(
            f"the weights {where} are not reachable: {' '.join(str(error).split())[:200]}\n"
            "connect to the network (or log in, for a private model), or name a local folder that holds "
            "config.json and model.safetensors"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise RequestError(f"{where} does not hold a {what}: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading report: layers left out on purpose fill it, and missing weights are refused by the caller."""
    from transformers.utils import logging as transformers_logging

    logging = cast(Any, transformers_logging)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def preprocessor_settings(name: str, revision: str | None) -> dict[str, Any]:
    """Content of `preprocessor_config.json` beside the weights; empty when there is none."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name,
        "preprocessor_config.json",
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return dict(json.loads(Path(path).read_text())) if path else {}


def weights_sha256(arrays: Iterable[Tensor]) -> str:
    """Hex digest over a set of arrays, whatever their order and names."""
    digests = []
    for array in arrays:
        plain = array.detach().cpu().contiguous()
        digest = hashlib.sha256(json.dumps([str(plain.dtype), list(plain.shape)]).encode())
        digest.update(plain.numpy().tobytes())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def stride_and_field(kernels: Iterable[int], strides: Iterable[int]) -> tuple[int, int]:
    """Samples between frames, and samples that one frame sees, of a stack of convolutions without padding."""
    kernels, strides = list(kernels), list(strides)
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return math.prod(strides), field


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inference in plain float32: no autograd, no autocast, no TF32; the caller's settings come back afterwards."""
    cudnn = torch.backends.cudnn
    chosen = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), _no_tf32():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = chosen


@contextmanager
def _no_tf32() -> Iterator[None]:
    """IEEE float32 in matrix products, convolutions and recurrent layers, on every backend."""
    if not hasattr(torch.backends.cudnn, "conv"):  # before torch 2.9
        with _no_tf32_by_legacy_switches():
            yield
        return
    # Only these switches: reading the legacy ones raises once the caller has used the new ones.
    switches: list[Any] = [
        torch.backends.cuda.matmul,
        *(getattr(torch.backends.cudnn, part) for part in ("conv", "rnn")),
        *(getattr(torch.backends.mkldnn, part) for part in ("matmul", "conv", "rnn")),
    ]
    chosen = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, chosen, strict=True):
            switch.fp32_precision = precision


@contextmanager
def _no_tf32_by_legacy_switches() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    chosen = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen[0])
        cudnn.allow_tf32 = chosen[1]
