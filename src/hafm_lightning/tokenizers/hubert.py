"""The paper's semantic tokens: features of one HuBERT layer, and the nearest of 500 k-means centroids (section 3.1).

Choices:

* HuBERT Base, layer 9, counted as in the paper and fairseq: the output of the 9th Transformer layer. The layers above
  are not loaded.
* One clip at a time: HuBERT's GroupNorm runs over time, so padding a clip to another's length changes its features by
  half, and even equal clips in a batch are rounded differently. For the same reason clips have a fixed length.
* Full float32; in bfloat16 enough ids change to matter.
* Whether the waveform is normalised first is part of the identity. By default the checkpoint's own
  `preprocessor_config.json` decides (both published models normalise).
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
from hafm_lightning.tokenizers import base, pretrained
from hafm_lightning.tokenizers.hub import resolve_source
from hafm_lightning.tokenizers.kmeans import assign, sample_frames, train_kmeans
from hafm_lightning.tokens import SEMANTIC_VOCABULARY

if TYPE_CHECKING:
    from transformers import HubertModel

HUBERT_KIND = "hubert"
HUBERT_BASE = "facebook/hubert-base-ls960"
TRAINING_FRAMES = 256 * SEMANTIC_VOCABULARY  # drawn from the whole corpus, to train centroids


class HubertFeatures:
    """Waveform -> features of one HuBERT layer at 50 Hz."""

    def __init__(self, model: HubertModel, *, do_normalize: bool, origin: Mapping[str, Any]) -> None:
        """``model`` is a HuBERT without the layers above the wanted one; its weights come from ``origin`` (JSON).

        ``do_normalize`` brings each waveform to mean 0 and variance 1 first. RequestError unless it makes a frame every
        20 ms.
        """
        config = model.config
        hop, field = pretrained.stride_and_field(config.conv_kernel, config.conv_stride)
        if hop != base.SEMANTIC_HOP or (field - hop) % 2:
            raise RequestError(
                f"this HuBERT makes a frame every {hop} samples of {field}; "
                f"the semantic stream needs one every {base.SEMANTIC_HOP}: name a HuBERT for 16 kHz"
            )
        self.model = cast(Any, model).eval().requires_grad_(False)
        self.padding = (field - hop) // 2  # samples of silence on each side, which make the number of frames exact
        if config.do_stable_layer_norm:
            # In Large, transformers puts a LayerNorm after the last layer that runs; without it a layer means the
            # same in both sizes.
            self.model.encoder.layer_norm = torch.nn.Identity()
        self.do_normalize = do_normalize
        self.origin = dict(origin)
        self.settings: dict[str, Any] = {
            "layer": config.num_hidden_layers,
            "do_normalize": do_normalize,
            "padding": self.padding,
            "width": config.hidden_size,
            "weights_sha256": pretrained.weights_sha256(self.model.state_dict().values()),
        }

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = HUBERT_BASE,
        *,
        layer: int = 9,
        revision: str | None = None,
        do_normalize: bool | None = None,
        device: str | torch.device = "cpu",
    ) -> HubertFeatures:
        """Load the first ``layer`` layers, counted from 1, of a Hub id or of a local folder in the Hub's format.

        ``revision`` is a commit or tag of a Hub id; by default the published models are pinned. ``do_normalize`` None
        follows the checkpoint's `preprocessor_config.json`, and is True if there is none. RequestError if the weights
        are not reachable or not a HuBERT's, or if there are too few layers.
        """
        from transformers import HubertModel

        name, pinned = resolve_source(source, revision)
        config = pretrained.load_config(name, pinned, "hubert")
        layers = config.num_hidden_layers
        if not 1 <= layer <= layers:
            raise RequestError(f"{name} has {layers} layers, counted from 1; layer {layer} is not among them")
        unused = ["masked_spec_embed"]  # HuBERT masks frames in pretraining only
        if config.do_stable_layer_norm:  # without the norm that __init__ takes out, a tokenizer with weights is saved
            unused += ["encoder.layer_norm.weight", "encoder.layer_norm.bias"]
        options = {"num_hidden_layers": layer, "attn_implementation": "sdpa"}
        model = pretrained.load_model(HubertModel, name, pinned, unused, **options)
        if do_normalize is None:
            do_normalize = bool(pretrained.preprocessor_settings(name, pinned).get("do_normalize", True))
        return cls(model.to(device), do_normalize=do_normalize, origin={"source": name, "revision": pinned})

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.model.device)

    def prepare(self, audio: Tensor) -> Tensor:
        """Input of the model for clips ``[B, L]``: normalised if so set, padded to ``[B, L + 2 * padding]``."""
        audio = audio.float()
        if self.do_normalize:
            exact = audio.double()
            variance, mean = torch.var_mean(exact, dim=1, correction=0, keepdim=True)
            audio = ((exact - mean) / torch.sqrt(variance + 1e-7)).float()
        return torch.nn.functional.pad(audio, (self.padding, self.padding))

    def __call__(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> float32 ``[B, L / 320, D]`` on the model's device."""
        with pretrained.full_precision(self.device):
            clips = self.prepare(audio).to(self.device)
            return torch.cat([self.model(clip[None]).last_hidden_state for clip in clips])


class HubertTokenizer(base.SavedTokenizer):
    """HuBERT features -> one of 500 centroids.

    Attributes:
        centroids: Feature vector of each token, float32 ``[V, D]``.
    """

    context_s: float | None = None  # the whole clip decides each token

    def __init__(self, features: HubertFeatures, centroids: Tensor, report: Mapping[str, Any] | None = None) -> None:
        """``centroids [V, D]`` of the same ``features``, else RequestError; ``report`` on their origin, JSON values."""
        if centroids.dim() != 2 or centroids.shape[1] != features.settings["width"]:
            raise RequestError(
                f"centroids {tuple(centroids.shape)} do not fit HuBERT features of width {features.settings['width']}: "
                "they were trained on another model"
            )
        self.features, self.model = features, features.model
        self.report = {**(report or {}), "origin": features.origin}
        self.centroids = centroids.detach().float().cpu()
        self.arrays = {"centroids": self.centroids}
        sha256 = base.content_sha256(self.arrays, features.settings)
        self.identity = base.TokenizerIdentity.semantic(HUBERT_KIND, sha256, len(centroids), features.settings)

    @classmethod
    def train(
        cls,
        clips: Iterable[NDArray[np.float32]],
        features: HubertFeatures,
        seed: int = 0,
        *,
        vocabulary: int = SEMANTIC_VOCABULARY,
    ) -> HubertTokenizer:
        """Train centroids on mono clips ``[L]`` at 16 kHz, of the same length as those to be tokenized later.

        Clips are vocals and accompaniments of the whole corpus, read once, one at a time. RequestError for no clips,
        fewer frames than centroids, or NaN samples.
        """
        frames = (features(samples[None])[0].cpu().numpy() for samples in base.whole_clips(clips, base.SEMANTIC_HOP))
        sample = sample_frames(frames, TRAINING_FRAMES, seed)
        centroids, report = train_kmeans(sample.frames, vocabulary, seed=seed)
        notes = {"clips": sample.clips, "frames_seen": sample.seen, "kmeans": asdict(report)}
        return cls(features, torch.from_numpy(centroids), notes)

    def encode(self, audio: Tensor) -> Tensor:
        """Mono clips of equal length at 16 kHz, ``[B, L]`` -> ids int64 ``[B, 1, T]`` on the CPU, ``T = L / 320``."""
        base.check_audio(self.identity, audio)
        centroids = self.centroids.to(self.features.device)
        return torch.stack([assign(self.features(clip[None])[0], centroids)[None].cpu() for clip in audio])

    @classmethod
    def load(
        cls, folder: str | Path, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> HubertTokenizer:
        """The tokenizer in ``folder``; RequestError if it, or its weights, are missing or damaged.

        ``weights`` is their folder or Hub id if they have moved; None takes those in ``folder``, or else their source.
        """
        identity, report = base.read_description(folder, HUBERT_KIND)
        source, revision = pretrained.saved_source(folder, report.get("origin"), weights)
        layer, normalize = (identity.settings.get(name) for name in ("layer", "do_normalize"))
        if type(layer) is not int or type(normalize) is not bool:
            damage = f"layer {layer!r:.40}, do_normalize {normalize!r:.40}"
            raise RequestError(f"{folder}: the settings of the tokenizer are damaged ({damage}); {base.ADVICE}")
        features = HubertFeatures.from_pretrained(
            source, revision=revision, device=device, layer=layer, do_normalize=normalize
        )
        features.origin = report.get("origin", features.origin)
        pretrained.check_weights(source, features.settings["weights_sha256"], folder, identity)
        tokenizer = cls(features, base.read_arrays(folder, {"centroids"})["centroids"], report)
        base.check_identity(folder, identity, tokenizer.identity)
        return tokenizer
