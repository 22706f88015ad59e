"""The paper's acoustic tokens: EnCodec's 24 kHz model at 6 kb/s, 8 codebooks of 1024 at 75 Hz (section 3.1).

Choices:

* 6 kb/s is asked for at every call and the shape is checked: the library's default is 1.5 kb/s, 2 codebooks.
* transformers runs the model from safetensors. The `encodec` package (extra ``encodec``; it needs torchaudio) is a
  second engine for the same weights: bit for bit the same codes and sound, so the identity does not name the engine.
* Codebooks of zeros, which a model built from a configuration has, are refused: every token would be 0.
* One clip at a time: in a batch the recurrent layers round differently, and a residual quantizer turns a rounding
  into another token.
* Fewer codebooks decode as they are: 4 of them are EnCodec at 3 kb/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import (
    ACOUSTIC_HOP,
    ACOUSTIC_SAMPLE_RATE_HZ,
    TokenizerIdentity,
    check_audio,
    check_codes,
    check_sha256,
    content_sha256,
    read_description,
    write_folder,
)
from hafm_lightning.tokenizers.hub import resolve_source
from hafm_lightning.tokenizers.weights import (
    check_weights,
    full_precision,
    load_config,
    load_pretrained,
    saved_source,
    weights_sha256,
)
from hafm_lightning.tokens import ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY

if TYPE_CHECKING:
    from transformers import EncodecModel

ENCODEC_KIND = "encodec"
ENCODEC_24KHZ = "facebook/encodec_24khz"
BANDWIDTH_KBPS = 6.0
"""75 frames a second of 8 codebooks of 10 bits."""

Backend = Literal["transformers", "encodec"]
"""Library that runs the model."""


def _package_model(model: EncodecModel) -> Any:
    """The `encodec` package's model with the weights of a transformers EnCodec."""
    try:
        from encodec import EncodecModel as Reference
    except (ImportError, OSError) as error:  # a torchaudio built for another torch raises OSError
        raise RequestError(
            f"the encodec package cannot be imported ({' '.join(str(error).split())[:160]}); install "
            "'hafm-lightning[encodec]' with a torchaudio that fits torch, or use the transformers backend"
        ) from error
    network = Reference.encodec_model_24khz(pretrained=False)
    network.load_state_dict(reference_state(model, network.state_dict()))
    network.set_target_bandwidth(BANDWIDTH_KBPS)
    return network.requires_grad_(False)


def reference_state(model: EncodecModel, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformers EnCodec under the names of the `encodec` package.

    Args:
        model: Source of the weights.
        names: State of the package's model; says which names and shapes are wanted.

    Raises:
        RequestError: The model is not of the published size.
    """
    state = model.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, wanted in names.items():
        ours = name.replace(".model.", ".layers.").replace("quantizer.vq.layers.", "quantizer.layers.")
        ours = ours.replace(".conv.conv.", ".conv.").replace(".convtr.convtr.", ".conv.")
        ours = ours.replace("._codebook.", ".codebook.")
        ours = ours.replace(".weight_g", ".parametrizations.weight.original0")
        ours = ours.replace(".weight_v", ".parametrizations.weight.original1")
        if ours not in state or state[ours].shape != wanted.shape:
            raise RequestError(
                f"the encodec package runs the published 24 kHz model only; weight {ours!r} "
                "is missing or of another shape: use the transformers backend"
            )
        renamed[name] = state[ours]
    return renamed


class EncodecTokenizer:
    """EnCodec at 24 kHz and 6 kb/s: sound at 75 Hz <-> 8 codebooks of 1024.

    Attributes:
        identity: What decides the tokens.
        context_s: None: the whole clip decides each token.
    """

    context_s: float | None = None

    def __init__(self, model: EncodecModel, *, origin: Mapping[str, Any], backend: Backend = "transformers") -> None:
        """Args:
        model: A 24 kHz EnCodec of transformers, with weights; put in eval mode here.
        origin: Where the weights came from (``source``, ``revision``), JSON values, for `tokenizer.json`.
        backend: Library that runs the model.

        Raises:
            RequestError: Another sort of EnCodec, untrained codebooks, or a backend that cannot run.
        """
        _check_model(model)
        self._model = cast(Any, model).eval().requires_grad_(False)
        self._network = self._model if backend == "transformers" else _package_model(model)
        self.backend = backend
        self.origin = dict(origin)
        used = {name: array for name, array in model.state_dict().items() if _changes_tokens(name)}
        settings = {"bandwidth_kbps": BANDWIDTH_KBPS, "weights_sha256": weights_sha256(used.values())}
        sha256 = content_sha256({}, settings)
        self.identity = TokenizerIdentity.acoustic(
            ENCODEC_KIND, sha256, ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY, settings
        )

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self._model.device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = ENCODEC_24KHZ,
        *,
        revision: str | None = None,
        backend: Backend = "transformers",
        device: str | torch.device = "cpu",
    ) -> EncodecTokenizer:
        """Load the weights.

        Args:
            source: Hub id or local folder in the Hub's format.
            revision: Commit or tag of a Hub id; the published model is pinned when none is given.
            backend: Library that runs the model.
            device: Where to run.

        Raises:
            RequestError: Weights not reachable, not those of a 24 kHz EnCodec, or a backend that cannot run.
        """
        from transformers import EncodecModel

        name, pinned = resolve_source(source, revision)
        load_config(name, pinned, "encodec")
        model = load_pretrained(EncodecModel, name, pinned)
        return cls(model, origin={"source": name, "revision": pinned}, backend=backend).to(device)

    def to(self, device: str | torch.device) -> EncodecTokenizer:
        """The same object, with its model on another device."""
        self._model.to(device)
        self._network.to(device)
        return self

    def _encode(self, clip: Tensor) -> Tensor:
        """``[1, 1, L]`` -> ``[1, K, T]``."""
        if self.backend == "transformers":
            codes: Tensor = self._network.encode(clip, bandwidth=BANDWIDTH_KBPS).audio_codes[0]
        else:
            codes = self._network.encode(clip)[0][0]
        return codes

    def _decode(self, codes: Tensor) -> Tensor:
        """``[1, k, T]`` -> ``[1, 1, L]``."""
        if self.backend == "transformers":
            sound: Tensor = self._network.decode(codes[None], [None]).audio_values
        else:
            sound = self._network.decode([(codes, None)])
        return sound

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 24 kHz, ``[B, L]`` -> ids int64 ``[B, 8, T]`` on the CPU, ``T = L / 320``."""
        frames = check_audio(self.identity, audio)
        with full_precision(self.device):
            codes = torch.cat([self._encode(clip[None, None].float().to(self.device)) for clip in audio]).cpu()
        if codes.shape[1:] != (ACOUSTIC_CODEBOOKS, frames):
            raise RuntimeError(f"EnCodec gave codes {tuple(codes.shape[1:])}, not {(ACOUSTIC_CODEBOOKS, frames)}")
        check_codes(self.identity, codes)
        return codes.clone()  # outside inference mode, so that it may be changed in place

    def decode(self, codes: Tensor) -> Tensor:
        """Ids int64 ``[B, k, T]`` of the first ``k`` codebooks -> float32 ``[B, T * 320]`` on the CPU, at 24 kHz."""
        check_codes(self.identity, codes)
        with full_precision(self.device):
            sound = torch.cat([self._decode(clip[None].to(self.device))[:, 0] for clip in codes]).cpu()
        if sound.shape[1] != codes.shape[2] * ACOUSTIC_HOP:
            raise RuntimeError(f"EnCodec gave {sound.shape[1]} samples for {codes.shape[2]} frames")
        return sound.clone()

    def save(self, folder: str | Path, *, include_weights: bool = False) -> None:
        """Write the tokenizer to ``folder``, whole or not at all.

        Args:
            folder: Where to.
            include_weights: Keep the weights there too, rather than the name of their source and their sha256.
        """
        write_folder(folder, self.identity, {}, {"origin": self.origin}, self._model if include_weights else None)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        weights: str | Path | None = None,
        backend: Backend = "transformers",
        device: str | torch.device = "cpu",
    ) -> EncodecTokenizer:
        """The tokenizer saved in ``folder``.

        Args:
            folder: What :meth:`save` wrote.
            weights: Where EnCodec's weights are now; None takes those in the folder, or else their source.
            backend: Library that runs the model.
            device: Where to run.

        Raises:
            RequestError: Missing, damaged or of another kind, or the weights are not reachable or not the same.
        """
        identity, report = read_description(folder, ENCODEC_KIND)
        origin = report["origin"]
        source, revision = saved_source(folder, origin, weights)
        tokenizer = cls.from_pretrained(source, revision=revision, backend=backend, device=device)
        tokenizer.origin = dict(origin)
        check_weights(source, tokenizer.identity.settings["weights_sha256"], folder, identity)
        check_sha256(folder, identity, tokenizer.identity.sha256)
        return tokenizer


def _changes_tokens(name: str) -> bool:
    """Whether a weight of this name can change codes or sound; the codebooks' training statistics cannot."""
    return not name.endswith((".inited", ".cluster_size", ".embed_avg"))


def _check_model(model: Any) -> None:
    """Raise RequestError unless the model is a mono 24 kHz EnCodec with trained codebooks."""
    config = model.config
    codebooks = model.quantizer.get_num_quantizers_for_bandwidth(BANDWIDTH_KBPS)
    facts = {
        "sampling_rate": (config.sampling_rate, ACOUSTIC_SAMPLE_RATE_HZ),
        "hop_length": (config.hop_length, ACOUSTIC_HOP),
        "audio_channels": (config.audio_channels, 1),
        "codebook_size": (config.codebook_size, ACOUSTIC_VOCABULARY),
        "codebooks at 6 kb/s": (codebooks, ACOUSTIC_CODEBOOKS),
        "normalize": (config.normalize, False),
        "chunk_length": (config.chunk_length, None),
    }
    wrong = [f"{name} is {actual}, not {wanted}" for name, (actual, wanted) in facts.items() if actual != wanted]
    if BANDWIDTH_KBPS not in config.target_bandwidths:
        wrong.append(f"{BANDWIDTH_KBPS} kb/s is not among its bandwidths {config.target_bandwidths}")
    if wrong:
        raise RequestError(f"this is not the 24 kHz EnCodec: {'; '.join(wrong)}; name {ENCODEC_24KHZ}")
    for level in range(ACOUSTIC_CODEBOOKS):
        if not bool(model.quantizer.layers[level].codebook.embed.any()):
            raise RequestError(f"EnCodec's codebook {level} is all zeros: the model has no trained weights")
