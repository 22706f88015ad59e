"""CLAP-music, EnCodec and HuBERT rows through transformers, from a local folder or the Hub.

* ``clap``: one normalised 512-number row a window, projected audio tower of CLAP. A clip up to the window's length is
  one row (repeated to fill the model's 10 s); a longer one gives a window every second. No window is long enough for
  the extractor's random crop, so rows are deterministic and no global random number is drawn.
* ``encodec``: the encoder's output before quantisation, 128 numbers, averaged over ``window_s``.
* ``hubert``: hidden state of one layer, averaged over ``window_s``; the waveform is padded by 40 samples on each side,
  so that ``n`` samples give exactly ``n / 320`` frames.

Arguments of all three: ``weights``, a folder or Hub id; ``sha256``, the expected hash of the weights file;
``revision``, a commit on the Hub; ``window_s``, the seconds that a row covers. The sha256 of the weights file and of
the configuration files, the layer and the window are part of the identity.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.embeddings.weights import model_folder

CLAP_HOP_S = 1.0
"""Seconds between CLAP's rows of a clip that is longer than the window."""
HUBERT_PADDING = 40
"""Samples added on each side: the convolutions see 400 samples every 320, so 80 more make frames = n / 320."""


def pooled_frames(frames: Tensor, frames_per_row: int) -> Tensor:
    """Means over runs of ``frames_per_row`` of ``frames [T, d]``; a shorter clip is one row, a rest is left out."""
    if frames.shape[0] < frames_per_row:
        return frames.mean(0, keepdim=True)
    count = frames.shape[0] // frames_per_row
    return frames[: count * frames_per_row].reshape(count, frames_per_row, -1).mean(1)


class ClapEmbedding(Embedding):
    """CLAP audio rows; ``window_s`` is at most the model's own window (10 s), its default."""

    def __init__(
        self,
        weights: str = "laion/larger_clap_music",
        sha256: str | None = None,
        revision: str | None = None,
        window_s: float | None = None,
    ) -> None:
        from transformers import ClapFeatureExtractor, ClapModel

        folder, hashes = model_folder(weights, revision, sha256)
        network = ClapModel.from_pretrained(folder, local_files_only=True)
        self.extractor: Any = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        rate_hz, longest_s = int(self.extractor.sampling_rate), float(self.extractor.max_length_s)
        window_s = longest_s if window_s is None else window_s
        if not 0 < window_s <= longest_s:
            raise RequestError(f"clap: window_s must be above 0 and at most {longest_s} s, got {window_s}")
        settings = {**hashes, "window_s": window_s, "hop_s": CLAP_HOP_S}
        # from_pretrained leaves networks in eval mode
        super().__init__("clap", rate_hz, int(network.config.projection_dim), settings, weights, network)
        self.window, self.hop = round(window_s * rate_hz), round(CLAP_HOP_S * rate_hz)

    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Unit-length rows, one a window."""
        rows = []
        for piece in waveform.unfold(0, min(self.window, len(waveform)), self.hop):
            features = self.extractor(
                piece.cpu().numpy(),
                sampling_rate=self.rate_hz,
                truncation="rand_trunc",  # no piece is longer than the model's window: nothing is drawn
                padding="repeatpad",
                return_tensors="pt",
            )["input_features"]
            output = self.network.get_audio_features(input_features=features.to(self.device))
            rows.append(output if isinstance(output, Tensor) else output.pooler_output)
        return torch.cat(rows)


class EncodecEmbedding(Embedding):
    """EnCodec's continuous latent, averaged over ``window_s``."""

    def __init__(
        self,
        weights: str = "facebook/encodec_24khz",
        sha256: str | None = None,
        revision: str | None = None,
        window_s: float = 0.96,
    ) -> None:
        from transformers import EncodecModel

        folder, hashes = model_folder(weights, revision, sha256)
        network = EncodecModel.from_pretrained(folder, local_files_only=True)
        config = network.config
        if config.audio_channels != 1 or config.normalize:
            raise RequestError(f"encodec: {weights} must be mono without normalisation, such as facebook/encodec_24khz")
        settings = {**hashes, "window_s": window_s}
        super().__init__("encodec", int(config.sampling_rate), int(config.hidden_size), settings, weights, network)
        self.frames_per_row = max(1, round(window_s * config.frame_rate))

    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows of the encoder's output."""
        latent = self.network.encoder(waveform.to(self.device)[None, None])  # [1, d, T]
        return pooled_frames(latent[0].T, self.frames_per_row)


class HubertEmbedding(Embedding):
    """Hidden layer ``layer`` (from 1) of HuBERT, averaged over ``window_s``; the layers above it are not loaded."""

    def __init__(
        self,
        weights: str = "facebook/hubert-base-ls960",
        sha256: str | None = None,
        revision: str | None = None,
        layer: int = 9,
        window_s: float = 0.96,
    ) -> None:
        from transformers import AutoConfig, AutoFeatureExtractor, HubertModel

        folder, hashes = model_folder(weights, revision, sha256)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.do_stable_layer_norm or not 1 <= layer <= config.num_hidden_layers:
            raise RequestError(
                f"hubert: {weights} must be a base model (post-norm) with at least {layer} layers, "
                f"has {config.num_hidden_layers}"
            )
        config.num_hidden_layers = layer
        network = HubertModel.from_pretrained(folder, config=config, local_files_only=True)
        self.extractor: Any = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
        settings = {**hashes, "layer": layer, "window_s": window_s}
        rate_hz = int(self.extractor.sampling_rate)
        super().__init__("hubert", rate_hz, int(config.hidden_size), settings, weights, network)
        self.frames_per_row = max(1, round(window_s * rate_hz / math.prod(config.conv_stride)))

    def clip_rows(self, waveform: Tensor) -> Tensor:
        """Rows of the chosen layer."""
        values = self.extractor(waveform.cpu().numpy(), sampling_rate=self.rate_hz, return_tensors="pt")["input_values"]
        padded = torch.nn.functional.pad(values, (HUBERT_PADDING, HUBERT_PADDING))  # [1, L + 80]
        return pooled_frames(self.network(padded.to(self.device)).last_hidden_state[0], self.frames_per_row)
