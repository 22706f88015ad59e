"""The paper's semantic tokens: features of one HuBERT layer, and the nearest of 500 k-means centroids (section 3.1).

Choices:

* HuBERT Base, layer 9, counted as the paper and fairseq do: the output of the 9th Transformer layer. The layers above
  are never loaded. In Large, whose layers normalise their input rather than their output, transformers puts one more
  LayerNorm after the last layer that runs; it is taken out, so a layer means the same in both sizes.
* 40 samples of silence on each side turn "one frame fewer than expected" into exactly 50 frames a second.
* One clip at a time: HuBERT's GroupNorm runs over time, so padding a clip to another's length changes its features by
  half, and even equal clips in a batch are rounded differently. That is also why tokens are defined on clips of a fixed
  length.
* Full float32; in bfloat16 enough ids flip to matter.
* Whether the waveform is normalised first is pinned in the identity. By default the checkpoint's own
  `preprocessor_config.json` decides (both published models say yes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.base import (
    SEMANTIC_HOP,
    TokenizerIdentity,
    check_audio,
    check_sha256,
    content_sha256,
    read_arrays,
    read_description,
    whole_clips,
    write_folder,
)
from hafm_lightning.tokenizers.hub import resolve_source
from hafm_lightning.tokenizers.kmeans import assign, import_centroids, sample_frames, train_kmeans
from hafm_lightning.tokenizers.weights import (
    check_weights,
    full_precision,
    load_config,
    load_pretrained,
    preprocessor_settings,
    saved_source,
    stride_and_field,
    weights_sha256,
)
from hafm_lightning.tokens import SEMANTIC_VOCABULARY

if TYPE_CHECKING:
    from transformers import HubertModel

HUBERT_KIND = "hubert"
HUBERT_BASE = "facebook/hubert-base-ls960"
HUBERT_LARGE = "facebook/hubert-large-ll60k"
HUBERT_LAYER = 9
"""The paper's layer, of Base."""
TRAINING_FRAMES = 256 * SEMANTIC_VOCABULARY
"""Frames that centroids are trained on, drawn from the whole corpus: 256 for each of 500."""


class HubertFeatures:
    """Waveform -> features of one HuBERT layer at 50 Hz."""

    def __init__(self, model: HubertModel, *, do_normalize: bool, origin: Mapping[str, Any]) -> None:
        """Args:
        model: HuBERT cut off above the wanted layer; put in eval mode here.
        do_normalize: Bring each waveform to mean 0 and variance 1 first.
        origin: Where the weights came from (``source``, ``revision``), JSON values, for `tokenizer.json`.

        Raises:
            RequestError: The model does not make a frame every 20 ms.
        """
        config = model.config
        hop, field = stride_and_field(config.conv_kernel, config.conv_stride)
        if hop != SEMANTIC_HOP or (field - hop) % 2:
            raise RequestError(
                f"this HuBERT makes a frame every {hop} samples of {field}; "
                f"the semantic stream needs one every {SEMANTIC_HOP}: name a HuBERT for 16 kHz"
            )
        self.model = cast(Any, model).eval().requires_grad_(False)
        self.padding = (field - hop) // 2
        """Samples of silence on each side that make the number of frames exact."""
        if config.do_stable_layer_norm:
            self.model.encoder.layer_norm = torch.nn.Identity()
        self.do_normalize = do_normalize
        self.origin = dict(origin)
        self.settings: dict[str, Any] = {
            "layer": config.num_hidden_layers,
            "do_normalize": do_normalize,
            "padding": self.padding,
            "width": config.hidden_size,
            "weights_sha256": weights_sha256(self.model.state_dict().values()),
        }

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = HUBERT_BASE,
        *,
        layer: int = HUBERT_LAYER,
        revision: str | None = None,
        do_normalize: bool | None = None,
        device: str | torch.device = "cpu",
    ) -> HubertFeatures:
        """Load the first ``layer`` layers.

        Args:
            source: Hub id or local folder in the Hub's format; :data:`HUBERT_LARGE` selects Large.
            layer: Whose output is the feature, counted from 1.
            revision: Commit or tag of a Hub id; the published models are pinned when none is given.
            do_normalize: None asks the checkpoint's `preprocessor_config.json`, and means yes where there is none.
            device: Where to run.

        Raises:
            RequestError: Weights not reachable or not a HuBERT's, or it has fewer layers.
        """
        from transformers import HubertModel

        name, pinned = resolve_source(source, revision)
        layers = load_config(name, pinned, "hubert").num_hidden_layers
        if not 1 <= layer <= layers:
            raise RequestError(f"{name} has {layers} layers, counted from 1; layer {layer} is not among them")
        model = load_pretrained(
            HubertModel,
            name,
            pinned,
            unused=("masked_spec_embed",),  # HuBERT masks frames in pretraining only
            num_hidden_layers=layer,
            attn_implementation="sdpa",
        )
        if do_normalize is None:
            do_normalize = bool(preprocessor_settings(name, pinned).get("do_normalize", True))
        features = cls(model, do_normalize=do_normalize, origin={"source": name, "revision": pinned})
        return features.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)

    def to(self, device: str | torch.device) -> HubertFeatures:
        """The same object, with its model on another device."""
        self.model.to(device)
        return self

    def prepare(self, audio: Tensor) -> Tensor:
        """Clips ``[B, L]`` as the model gets them: normalised where pinned, and padded to ``[B, L + 2 * padding]``."""
        audio = audio.float()
        if self.do_normalize:
            exact = audio.double()
            variance, mean = torch.var_mean(exact, dim=1, correction=0, keepdim=True)
            audio = ((exact - mean) / torch.sqrt(variance + 1e-7)).float()
        return torch.nn.functional.pad(audio, (self.padding, self.padding))

    def __call__(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> float32 ``[B, L / 320, D]`` on the model's device."""
        with full_precision(self.device):
            clips = self.prepare(audio).to(self.device)
            return torch.cat([self.model(clip[None]).last_hidden_state for clip in clips])


class HubertTokenizer:
    """HuBERT features -> one of 500 centroids.

    Attributes:
        identity: What decides the tokens.
        context_s: None: the whole clip decides each token.
        centroids: Feature vector of each token, float32 ``[V, D]``.
    """

    context_s: float | None = None

    def __init__(self, features: HubertFeatures, centroids: Tensor, report: Mapping[str, Any] | None = None) -> None:
        """Args:
        features: The front end.
        centroids: Float32 ``[V, D]``, trained on features of the same layer.
        report: How the centroids came about, JSON values.

        Raises:
            RequestError: The centroids are not as wide as the features.
        """
        if centroids.dim() != 2 or centroids.shape[1] != features.settings["width"]:
            raise RequestError(
                f"centroids {tuple(centroids.shape)} do not fit HuBERT features of width {features.settings['width']}: "
                "they were trained on another model"
            )
        self.features = features
        self.report = {key: value for key, value in (report or {}).items() if key != "origin"}
        self.centroids = centroids.detach().float().cpu()
        sha256 = content_sha256({"centroids": self.centroids}, features.settings)
        self.identity = TokenizerIdentity.semantic(HUBERT_KIND, sha256, len(centroids), features.settings)

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        features: HubertFeatures,
        seed: int = 0,
        *,
        vocabulary: int = SEMANTIC_VOCABULARY,
        max_frames: int = TRAINING_FRAMES,
    ) -> HubertTokenizer:
        """Train centroids on mono clips ``[L]`` at 16 kHz, of the same length as those to be tokenized later.

        Args:
            clips: Vocals and accompaniments of the whole corpus; read once, one at a time. A remainder below one frame
                is cut off.
            features: The front end.
            seed: Of the sampled frames and of the first centroids.
            vocabulary: Number of centroids.
            max_frames: Most frames to train on, drawn uniformly from all clips.

        Raises:
            RequestError: No clips, fewer frames than centroids, or NaN samples.
        """
        frames = (features(samples[None])[0].cpu().numpy() for samples in whole_clips(clips, SEMANTIC_HOP))
        sample = sample_frames(frames, max_frames, seed)
        centroids, report = train_kmeans(sample.frames(), vocabulary, seed=seed)
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "kmeans": asdict(report)}
        return cls(features, torch.from_numpy(centroids), notes)

    @classmethod
    def with_centroids(
        cls, features: HubertFeatures, path: str | Path, *, trust_pickle: bool = False
    ) -> HubertTokenizer:
        """A tokenizer on centroids trained elsewhere; see :func:`hafm_lightning.tokenizers.kmeans.import_centroids`."""
        centroids = torch.from_numpy(import_centroids(path, trust_pickle=trust_pickle))
        return cls(features, centroids, {"imported_from": Path(path).name})

    def to(self, device: str | torch.device) -> HubertTokenizer:
        """The same object, with its model on another device."""
        self.features.to(device)
        return self

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> ids int64 ``[B, 1, T]`` on the CPU, ``T = L / 320``."""
        check_audio(self.identity, audio)
        centroids = self.centroids.to(self.features.device)
        return torch.stack([assign(self.features(clip[None])[0], centroids)[None].cpu() for clip in audio])

    def save(self, folder: str | Path, *, include_weights: bool = False) -> None:
        """Write the tokenizer to ``folder``, whole or not at all.

        Args:
            folder: Where to.
            include_weights: Keep HuBERT's weights there too, rather than the name of their source and their sha256.
        """
        report = {**self.report, "origin": self.features.origin}
        model = self.features.model if include_weights else None
        write_folder(folder, self.identity, {"centroids": self.centroids}, report, model)

    @classmethod
    def load(
        cls, folder: str | Path, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> HubertTokenizer:
        """The tokenizer saved in ``folder``.

        Args:
            folder: What :meth:`save` wrote.
            weights: Where HuBERT's weights are now; None takes those in the folder, or else their source.
            device: Where to run.

        Raises:
            RequestError: Missing, damaged or of another kind, or the weights are not reachable or not the same.
        """
        identity, report = read_description(folder, HUBERT_KIND)
        origin = report["origin"]
        source, revision = saved_source(folder, origin, weights)
        features = HubertFeatures.from_pretrained(
            source,
            layer=identity.settings["layer"],
            revision=revision,
            do_normalize=identity.settings["do_normalize"],
            device=device,
        )
        features.origin = dict(origin)
        check_weights(source, features.settings["weights_sha256"], folder, identity)
        tokenizer = cls(features, read_arrays(folder, {"centroids"})["centroids"], report)
        check_sha256(folder, identity, tokenizer.identity.sha256)
        return tokenizer
