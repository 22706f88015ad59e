"""Tiny models of the real classes through the real loading code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_sounds import sha256, sound

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding


def save_tiny_clap(folder: Path) -> None:
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    audio = ClapAudioConfig(
        window_size=4,
        num_mel_bins=16,
        spec_size=64,
        patch_size=2,
        patch_stride=2,
        patch_embeds_hidden_size=8,
        hidden_size=16,
        depths=[1, 1],
        num_attention_heads=[2, 2],
        num_hidden_layers=2,
        projection_dim=12,
    )
    text = ClapTextConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, projection_dim=12
    )
    torch.manual_seed(1)
    config = ClapConfig(audio_config=audio.to_dict(), text_config=text.to_dict(), projection_dim=12)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(feature_size=16, max_length_s=2).save_pretrained(folder)


def save_tiny_encodec(folder: Path) -> None:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(2)
    EncodecModel(EncodecConfig(num_filters=4, hidden_size=16, codebook_size=8)).save_pretrained(folder)


def save_tiny_hubert(folder: Path) -> None:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(3)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def test_clap_rows(tmp_path: Path) -> None:
    from transformers import ClapModel

    save_tiny_clap(tmp_path)
    embedding = load_embedding(
        EmbeddingSource("clap", str(tmp_path), sha256(tmp_path / "model.safetensors"), window_s=1.0, level="recorded")
    )
    assert (embedding.rate_hz, embedding.dimensions) == (48000, 12)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is the point
    signal = sound(3.5, 48000)
    rows = embedding.rows(signal)
    assert rows.shape == (3, 12)  # windows at 0, 1 and 2 s
    np.testing.assert_array_equal(rows, embedding.rows(signal))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(rows[1], embedding.rows(signal[48000:96000])[0], rtol=1e-4, atol=1e-6)

    model = ClapModel.from_pretrained(tmp_path).eval()
    features = embedding.extractor(signal[:48000], sampling_rate=48000, truncation="rand_trunc", return_tensors="pt")
    with torch.no_grad():
        pooled = model.audio_model(input_features=features["input_features"]).pooler_output
        expected = torch.nn.functional.normalize(model.audio_projection(pooled), dim=-1)
    np.testing.assert_allclose(rows[0], expected[0].numpy(), rtol=1e-4, atol=1e-6)
    assert load_embedding(EmbeddingSource("clap", str(tmp_path))).rows(signal[:1000]).shape == (1, 12)


def test_encodec_rows(tmp_path: Path) -> None:
    from transformers import EncodecModel

    save_tiny_encodec(tmp_path)
    embedding = load_embedding(EmbeddingSource("encodec", str(tmp_path), window_s=0.4, level="recorded"))
    signal = sound(1.0, 24000)
    rows = embedding.rows(signal)
    assert rows.shape == (2, 16)  # 75 frames, 30 to a row
    with torch.no_grad():
        latent = EncodecModel.from_pretrained(tmp_path).encoder(torch.from_numpy(signal)[None, None])[0].numpy()
    np.testing.assert_allclose(rows, [latent[:, :30].mean(1), latent[:, 30:60].mean(1)], rtol=1e-4, atol=1e-6)


def test_hubert_rows(tmp_path: Path) -> None:
    from transformers import HubertModel

    save_tiny_hubert(tmp_path)
    embedding = load_embedding(EmbeddingSource("hubert", str(tmp_path), layer=2, window_s=0.5))
    signal = sound(1.0)
    rows = embedding.rows(signal)
    assert rows.shape == (2, 16)  # exactly 50 frames, 25 to a row
    scaled = (signal - signal.mean()) / np.sqrt(signal.astype(np.float64).var() + 1e-7)
    padded = torch.from_numpy(np.pad(scaled, 40).astype(np.float32))[None]
    with torch.no_grad():
        states = HubertModel.from_pretrained(tmp_path).eval()(padded, output_hidden_states=True).hidden_states[2][0]
    np.testing.assert_allclose(rows, states.reshape(2, 25, 16).mean(1).numpy(), rtol=1e-3, atol=1e-5)
    with pytest.raises(RequestError, match="at least 4 layers, has 3"):
        load_embedding(EmbeddingSource("hubert", str(tmp_path), layer=4))


@pytest.mark.parametrize("name", ["clap", "encodec", "hubert"])
def test_hub_folders_with_another_hash_are_refused(name: str, tmp_path: Path) -> None:
    {"clap": save_tiny_clap, "encodec": save_tiny_encodec, "hubert": save_tiny_hubert}[name](tmp_path)
    with pytest.raises(RequestError, match="expected 00ff"):
        load_embedding(EmbeddingSource(name, str(tmp_path), sha256="00ff"))
