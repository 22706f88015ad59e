"""The paper's acoustic tokens: EnCodec's 24 kHz model at 6 kb/s, 8 codebooks of 1024 at 75 Hz (section 3.1).

Choices:

* Every call asks for 6 kb/s and the shape is checked: the library's default is 1.5 kb/s, 2 codebooks.
* transformers runs the model from safetensors. The `encodec` package (extra ``encodec``; it needs torchaudio) is a
  second backend for the same weights, with bit-identical codes and sound, so the identity does not name the backend.
* Codebooks of zeros, as in a model built from a configuration, are refused: every token would be 0.
* One clip at a time: in a batch the recurrent layers round differently, and a residual quantizer turns a rounding
  into another token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import base, pretrained
from hafm_lightning.tokenizers.hub import resolve_source
from hafm_lightning.tokens import ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY

if TYPE_CHECKING:
    from transformers import EncodecModel

ENCODEC_KIND = "encodec"
ENCODEC_24KHZ = "facebook/encodec_24khz"
BANDWIDTH_KBPS = 6.0  # 75 frames per second of 8 codebooks of 10 bits

Backend = Literal["transformers", "encodec"]

_NAMES = {
    ".model.": ".layers.",
    "quantizer.vq.layers.": "quantizer.layers.",
    ".conv.conv.": ".conv.",
    ".convtr.convtr.": ".conv.",
    "._codebook.": ".codebook.",
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
"""Parts of the names of weights: in the `encodec` package -> in transformers."""


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
    network.load_state_dict(_renamed(model.state_dict(), network.state_dict()))
    network.set_target_bandwidth(BANDWIDTH_KBPS)
    return network.requires_grad_(False).to(model.device)


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a transformers EnCodec under the ``names`` of the `encodec` package; RequestError for other sizes."""
    renamed: dict[str, Tensor] = {}
    for name, wanted in names.items():
        ours = name
        for theirs, replacement in _NAMES.items():
            ours = ours.replace(theirs, replacement)
        if ours not in state or state[ours].shape != wanted.shape:
            raise RequestError(
                f"the encodec package runs the published 24 kHz model only; weight {ours!r} "
                "is missing or of another shape: use the transformers backend"
            )
        renamed[name] = state[ours]
    return renamed


class EncodecTokenizer(base.SavedTokenizer):
    """EnCodec at 24 kHz and 6 kb/s: sound at 75 Hz <-> 8 codebooks of 1024."""

    model: EncodecModel
    context_s: float | None = None  # the whole clip decides each token

    def __init__(self, model: EncodecModel, *, origin: Mapping[str, Any], backend: Backend = "transformers") -> None:
        """``model`` is a 24 kHz EnCodec of transformers with weights, which come from ``origin`` (JSON values).

        RequestError for another EnCodec, untrained codebooks, or a ``backend`` (library) that cannot run.
        """
        _check_model(model)
        self.model = cast(Any, model).eval().requires_grad_(False)
        self._network: Any = self.model if backend == "transformers" else _package_model(model)
        self.backend = backend
        self.report = {"origin": dict(origin)}
        # The codebooks' training statistics change neither codes nor sound.
        unused = (".inited", ".cluster_size", ".embed_avg")
        used = [array for name, array in model.state_dict().items() if not name.endswith(unused)]
        settings = {"bandwidth_kbps": BANDWIDTH_KBPS, "weights_sha256": pretrained.weights_sha256(used)}
        sha256 = base.content_sha256({}, settings)
        sizes = (ACOUSTIC_CODEBOOKS, ACOUSTIC_VOCABULARY)
        self.identity = base.TokenizerIdentity.acoustic(ENCODEC_KIND, sha256, *sizes, settings)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = ENCODEC_24KHZ,
        *,
        revision: str | None = None,
        backend: Backend = "transformers",
        device: str | torch.device = "cpu",
    ) -> EncodecTokenizer:
        """Load the weights of a Hub id or of a local folder in the Hub's format.

        ``revision`` is a commit or tag of a Hub id; by default the published model is pinned. RequestError if the
        weights are not reachable or not those of a 24 kHz EnCodec, or if the backend cannot run.
        """
        from transformers import EncodecModel

        name, pinned = resolve_source(source, revision)
        pretrained.load_config(name, pinned, "encodec")
        model = pretrained.load_model(EncodecModel, name, pinned).to(device)
        return cls(model, origin={"source": name, "revision": pinned}, backend=backend)

    def _encode(self, clip: Tensor) -> Tensor:
        """``[1, 1, L]`` -> ``[1, K, T]``."""
        if self.backend == "encodec":
            return cast(Tensor, self._network.encode(clip)[0][0])
        return cast(Tensor, self._network.encode(clip, bandwidth=BANDWIDTH_KBPS).audio_codes[0])

    def _decode(self, codes: Tensor) -> Tensor:
        """``[1, k, T]`` -> ``[1, 1, L]``."""
        if self.backend == "encodec":
            return cast(Tensor, self._network.decode([(codes, None)]))
        return cast(Tensor, self._network.decode(codes[None], [None]).audio_values)

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 24 kHz, ``[B, L]`` -> ids int64 ``[B, 8, T]`` on the CPU, ``T = L / 320``."""
        frames = base.check_audio(self.identity, audio)
        with pretrained.full_precision(self.device):
            codes = torch.cat([self._encode(clip[None, None].float().to(self.device)) for clip in audio]).cpu()
        if codes.shape[1:] != (ACOUSTIC_CODEBOOKS, frames):
            raise RuntimeError(f"EnCodec gave codes {tuple(codes.shape[1:])}, not {(ACOUSTIC_CODEBOOKS, frames)}")
        base.check_codes(self.identity, codes)
        return codes.clone()  # outside inference mode, so that it may be changed in place

    def decode(self, codes: Tensor) -> Tensor:
        """Ids int64 ``[B, k, T]`` of the first ``k`` codebooks -> float32 ``[B, T * 320]`` on the CPU, at 24 kHz."""
        base.check_codes(self.identity, codes)
        with pretrained.full_precision(self.device):
            sound = torch.cat([self._decode(clip[None].to(self.device))[:, 0] for clip in codes]).cpu()
        if sound.shape[1] != codes.shape[2] * base.ACOUSTIC_HOP:
            raise RuntimeError(f"EnCodec gave {sound.shape[1]} samples for {codes.shape[2]} frames")
        return sound.clone()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        weights: str | Path | None = None,
        backend: Backend = "transformers",
        device: str | torch.device = "cpu",
    ) -> EncodecTokenizer:
        """The tokenizer in ``folder``; RequestError if it, or its weights, are missing or damaged.

        ``weights`` is their folder or Hub id if they have moved; None takes those in ``folder``, or else their source.
        """
        identity, report = base.read_description(folder, ENCODEC_KIND)
        source, revision = pretrained.saved_source(folder, report.get("origin"), weights)
        tokenizer = cls.from_pretrained(source, revision=revision, backend=backend, device=device)
        tokenizer.report = report
        pretrained.check_weights(source, tokenizer.identity.settings["weights_sha256"], folder, identity)
        base.check_identity(folder, identity, tokenizer.identity)
        return tokenizer


def _check_model(model: Any) -> None:
    """RequestError unless the model is a mono 24 kHz EnCodec with trained codebooks."""
    config = model.config
    codebooks = model.quantizer.get_num_quantizers_for_bandwidth(BANDWIDTH_KBPS)
    facts = {
        "sampling_rate": (config.sampling_rate, base.ACOUSTIC_SAMPLE_RATE_HZ),
        "hop_length": (config.hop_length, base.ACOUSTIC_HOP),
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
