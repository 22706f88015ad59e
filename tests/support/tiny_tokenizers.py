"""Tiny models of the real classes, with random weights, in the Hub's folder format; and sounds to try them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def hubert_config(*, large: bool = False, layers: int = 4) -> Any:
    """HuBERT of the real geometry (frames every 320 samples of 400) and toy width; ``large``: its order of norms."""
    from transformers import HubertConfig

    return HubertConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=large,
        feat_extract_norm="layer" if large else "group",
        conv_bias=large,
    )


def save_hubert(folder: Path, *, large: bool = False, layers: int = 4, do_normalize: bool | None = True) -> Any:
    """Write a tiny HuBERT to ``folder``; returns the whole model in eval mode."""
    from transformers import HubertModel

    torch.manual_seed(1)
    model = HubertModel(hubert_config(large=large, layers=layers)).eval()
    model.save_pretrained(folder)
    if do_normalize is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalize}))
    return model


def fill_codebooks(model: Any, *, seed: int = 0) -> None:
    """Seeded noise of the size of the encoder's output in the codebooks, which are all zeros after construction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        features = model.encoder(0.3 * torch.randn(1, 1, 24000, generator=generator))
        centre, spread = features.mean(dim=(0, 2)), features.std(dim=(0, 2))
        for level, layer in enumerate(model.quantizer.layers):
            noise = torch.randn(layer.codebook.embed.shape, generator=generator) * spread * 0.7**level
            layer.codebook.embed.copy_(noise + centre if level == 0 else noise)


def save_encodec(folder: Path, *, filled: bool = True, **changes: Any) -> Any:
    """Write a tiny EnCodec of the real rates and codebooks to ``folder``; returns the model in eval mode."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(2)
    config = {"hidden_size": 8, "num_filters": 2, "num_lstm_layers": 1, "codebook_dim": 8, **changes}
    model = EncodecModel(EncodecConfig(**config)).eval()
    if filled:
        fill_codebooks(model)
    model.save_pretrained(folder)
    return model


def noise(batch: int, samples: int, seed: int = 0, scale: float = 0.1) -> Tensor:
    """White noise ``[batch, samples]``."""
    return scale * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def chord_song(seed: int, rate_hz: int, duration_s: float = 5.0) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """Half-second major chords on random roots, with a drum hit on each: samples ``[L]`` and ``(start_s, root)``."""
    generator = np.random.default_rng(seed)
    samples = np.zeros(round(duration_s * rate_hz), dtype=np.float64)
    chords = []
    for start in range(0, len(samples), rate_hz // 2):
        root = int(generator.integers(12))
        chords.append((start / rate_hz, root))
        t = np.arange(min(rate_hz // 2, len(samples) - start)) / rate_hz
        for interval in (0, 4, 7, 12):
            frequency = 440 * 2 ** ((48 + root + interval - 69) / 12)
            for harmonic in range(1, 7):
                level = 0.05 / harmonic * np.exp(-2 * t)
                samples[start : start + len(t)] += level * np.sin(2 * np.pi * harmonic * frequency * t)
        samples[start : start + len(t)] += 0.2 * np.exp(-40 * t) * generator.standard_normal(len(t))
    return samples.astype(np.float32), chords
