"""Loading and running the pretrained weights of the paper's tokenizers; ``hub`` finds them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import ADVICE, MODEL_FOLDER, TokenizerIdentity
from hafm_lightning.tokenizers.hub import UnreachableWeightsError
from hafm_lightning.untrusted import checked, read_json


def saved_source(folder: str | Path, origin: Any, weights: str | Path | None) -> tuple[str | Path, str | None]:
    """Source and revision of the weights of the tokenizer in ``folder``.

    ``weights``, if given; else those in the folder, if there are any; else the ``origin``, from which they came.
    """
    if weights is not None:
        return weights, None
    inside = Path(folder) / MODEL_FOLDER
    if inside.is_dir():
        return inside, None
    source, revision = (origin.get("source"), origin.get("revision")) if isinstance(origin, Mapping) else (None, None)
    if not isinstance(source, str) or not source.isprintable() or not isinstance(revision, str | None):
        raise RequestError(f"{folder}: its description does not say where its weights come from; {ADVICE}")
    return source, revision


def check_weights(source: str | Path, sha256: str, folder: str | Path, identity: TokenizerIdentity) -> None:
    """RequestError unless the weights at ``source`` are those with which the tokenizer in ``folder`` was made."""
    expected = str(identity.settings.get("weights_sha256"))
    if sha256 != expected:
        raise RequestError(
            f"the weights at {source} have sha256 {sha256[:12]}, {folder} was made with {expected[:12]}; "
            "name the weights it was made with"
        )


def load_config(name: str, revision: str | None, model_type: str) -> Any:
    """Configuration of the model ``name``, a folder or Hub id; RequestError if it is missing or of another type."""
    from transformers import AutoConfig

    with _readable_errors(name, revision, model_type):
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
    if config.model_type != model_type:
        raise RequestError(f"{name} holds a model of type {config.model_type!r}, expected {model_type!r}")
    return config


def load_model(model_class: Any, name: str, revision: str | None, unused: Iterable[str] = (), **config: Any) -> Any:
    """A transformers model in eval mode and float32, with every weight from ``name``, a folder or Hub id.

    ``unused`` names weights that may be missing, ``config`` overrides the model's configuration. RequestError if the
    weights are not reachable, damaged, or of another class.
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
    """Turn errors of transformers while it loads ``what`` into a RequestError with advice."""
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
    """No loading report: it lists the layers left out on purpose; the caller refuses missing weights."""
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
    """Content of `preprocessor_config.json` beside the weights; empty if there is none."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name,
        "preprocessor_config.json",
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if not path:
        return {}
    content = read_json(path, what="a file of settings", advice="fetch the model again")
    return checked(content, dict[str, Any], path, "fetch the model again")


def weights_sha256(arrays: Iterable[Tensor]) -> str:
    """Hex digest over arrays, independent of order and names: the same weights have the same one in every library."""
    digests = []
    for array in arrays:
        plain = array.detach().cpu().contiguous()
        digest = hashlib.sha256(json.dumps([str(plain.dtype), list(plain.shape)]).encode())
        digest.update(plain.numpy().tobytes())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def stride_and_field(kernels: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Samples between frames, and samples in a frame's receptive field, of convolutions without padding."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return math.prod(strides), field


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inference in IEEE float32: autocast and TF32 would change ids. The caller's settings come back afterwards."""
    cudnn = torch.backends.cudnn
    with (
        _temporarily([(cudnn, "benchmark", False), (cudnn, "deterministic", True)]),
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False),
        _no_tf32() if hasattr(cudnn, "conv") else _no_tf32_before_2_9(),
    ):
        yield


@contextmanager
def _temporarily(values: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes of some objects, each ``(object, name, value)``, set inside the block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for owner, name, value in values:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _no_tf32() -> AbstractContextManager[None]:
    """IEEE float32 in matrix products, convolutions and recurrent layers of every backend (torch 2.9 and later)."""
    # Only these switches: reading the older ones raises after the caller has used the newer ones.
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    switches = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    return _temporarily([(switch, "fp32_precision", "ieee") for switch in switches])


@contextmanager
def _no_tf32_before_2_9() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    with _temporarily([(torch.backends.cudnn, "allow_tf32", False)]):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
