"""Embeddings against independent computations; tiny models of the real classes through the real loading code."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import log_mel, vggish
from hafm_lightning.evaluation.embeddings.base import EmbeddingSource, LogMelEmbedding, load_embedding
from hafm_lightning.evaluation.embeddings.vggish import VGGish, VGGishEmbedding, convert_weights
from hafm_lightning.evaluation.embeddings.weights import CACHE_VARIABLE, download


def sound(seconds: float, rate_hz: int = 16000, seed: int = 0) -> np.ndarray:
    """A gliding tone in noise, mono float32."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (220 + 40 * t) * t) + 0.02 * noise).astype(np.float32)


def published_log_mel(signal: np.ndarray) -> np.ndarray:
    """The recipe, number by number: a DFT written out, one triangle at a time."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    bins = np.arange(257)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(400), bins) / 512)  # samples 400..511 are zeros
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = [mel(125.0) + i * (mel(7500.0) - mel(125.0)) / 65 for i in range(66)]
    rows = []
    for start in range(0, len(signal) - 400 + 1, 160):
        magnitude = np.abs((signal[start : start + 400].astype(np.float64) * window) @ fourier)
        bands = []
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            total = 0.0
            for index in range(1, 257):
                position = mel(index * 8000.0 / 256)
                if low < position < high:
                    rising = (position - low) / (centre - low)
                    falling = (high - position) / (high - centre)
                    total += magnitude[index] * min(rising, falling)
            bands.append(math.log(total + 0.01))
        rows.append(bands)
    return np.array(rows)


def test_front_end_equals_the_published_recipe_number_by_number() -> None:
    signal = sound(0.2)
    expected = published_log_mel(signal)
    found = log_mel.log_mel(torch.from_numpy(signal)).numpy()
    assert found.shape == expected.shape == (18, 64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.5


@pytest.mark.parametrize(
    ("framing", "seconds", "rows"),
    [("contiguous", 10.0, 10), ("google", 10.0, 19), ("contiguous", 3.0, 3), ("google", 3.0, 5), ("google", 1.0, 1)],
)
def test_framings_give_the_published_numbers_of_rows(framing: str, seconds: float, rows: int) -> None:
    signal = torch.from_numpy(sound(seconds))
    found = log_mel.patches(signal, framing)
    assert found.shape == (rows, 96, 64)
    step = 96 * 160 if framing == "contiguous" else 8000
    last = signal[(rows - 1) * step :][: 400 + 95 * 160]
    torch.testing.assert_close(found[-1], log_mel.log_mel(last), rtol=0, atol=1e-6)


def test_too_short_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="15600 samples"):
        LogMelEmbedding().rows(sound(0.9))
    with pytest.raises(ValueError, match="unknown framing"):
        LogMelEmbedding(framing="vast")


def test_logmel_is_the_low_corner_of_a_cosine_transform() -> None:
    signal = sound(2.0)
    found = LogMelEmbedding().rows(signal)
    for index, patch in enumerate(log_mel.patches(torch.from_numpy(signal), "contiguous").numpy()):
        expected = scipy.fft.dctn(patch.astype(np.float64), norm="ortho")[:8, :16].reshape(-1) / np.sqrt(patch.size)
        np.testing.assert_allclose(found[index], expected, atol=3e-6)
        assert found[index, 0] == pytest.approx(patch.mean(), rel=1e-5)


def test_rows_of_several_clips_are_those_of_each() -> None:
    embedding = LogMelEmbedding(framing="google")
    clips = [sound(1.0, seed=1), torch.from_numpy(sound(2.2, seed=2))]
    np.testing.assert_array_equal(embedding.rows(clips), np.concatenate([embedding.rows(clip) for clip in clips]))
    assert embedding.rows([]).shape == (0, 128)


@pytest.mark.parametrize("bad", [np.zeros((2, 16000), np.float32), np.full(16000, np.nan, np.float32)])
def test_stereo_and_nan_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mono waveform|NaN"):
        LogMelEmbedding().rows(bad)


def test_identity_tells_settings_apart() -> None:
    first, same, other = LogMelEmbedding(), LogMelEmbedding(), LogMelEmbedding(framing="google")
    assert first.identity == same.identity != other.identity
    assert first.identity.startswith("logmel:")
    assert first.provenance(clips=33)["clips"] == 33


def tiny_vggish(path: Path) -> VGGish:
    torch.manual_seed(0)
    network = VGGish(channels=(2, 3, 2, 3), hidden=6, dimensions=5)
    torch.save(network.state_dict(), path)
    return network


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_vggish_equals_a_computation_without_torch(tmp_path: Path) -> None:
    network = tiny_vggish(tmp_path / "tiny.pth")
    state = {name: array.numpy().astype(np.float64) for name, array in network.state_dict().items()}
    signal = sound(0.975)
    value = published_log_mel(signal)[None, :96]  # [1, time, band]
    for index, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        value = np.stack(
            [
                sum(
                    scipy.signal.correlate2d(plane, kernel, mode="same")
                    for plane, kernel in zip(value, kernels, strict=True)
                )
                + offset
                for kernels, offset in zip(weight, bias, strict=True)
            ]
        )
        value = np.maximum(value, 0.0)
        if pooled:
            value = value.reshape(len(value), value.shape[1] // 2, 2, value.shape[2] // 2, 2).max((2, 4))
    row = np.array([value[c, t, b] for t in range(6) for b in range(4) for c in range(3)])  # time, band, channel
    for index in (0, 2, 4):
        row = state[f"embeddings.{index}.weight"] @ row + state[f"embeddings.{index}.bias"]
        row = np.maximum(row, 0.0) if index < 4 else row
    embedding = VGGishEmbedding(tmp_path / "tiny.pth", sha256(tmp_path / "tiny.pth"))
    found = embedding.rows(signal)
    np.testing.assert_allclose(found[0], row, rtol=1e-5, atol=1e-6)
    rectified = VGGishEmbedding(tmp_path / "tiny.pth", sha256(tmp_path / "tiny.pth"), activation=True)
    np.testing.assert_allclose(rectified.rows(signal), np.maximum(found, 0))
    assert rectified.identity != embedding.identity


def test_full_size_vggish_has_the_published_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(array.shape) for name, array in VGGish().state_dict().items()}
    assert shapes["features.13.weight"] == (512, 512, 3, 3)
    assert shapes["embeddings.0.weight"] == (4096, 12288)
    assert shapes["embeddings.4.weight"] == (128, 4096)
    assert sum(math.prod(shape) for shape in shapes.values()) == 72_141_184
    assert len(shapes) == 18


def test_wrong_hash_and_other_content_are_refused(tmp_path: Path) -> None:
    tiny_vggish(tmp_path / "tiny.pth")
    with pytest.raises(RequestError, match="expected 1008697624580379"):
        VGGishEmbedding(tmp_path / "tiny.pth")  # a torch file must be the published one unless its hash is stated
    with pytest.raises(RequestError, match="expected 00ff"):
        VGGishEmbedding(tmp_path / "tiny.pth", sha256="00ff")
    with pytest.raises(RequestError, match="no weights file"):
        VGGishEmbedding(tmp_path / "absent.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(RequestError, match="not VGGish weights"):
        VGGishEmbedding(tmp_path / "other.pth", sha256(tmp_path / "other.pth"))


class RunsWhenLoaded:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (self.marker,))


def test_pickles_with_code_are_refused_without_running(tmp_path: Path) -> None:
    torch.save({"weight": RunsWhenLoaded(str(tmp_path / "ran"))}, tmp_path / "hostile.pth")
    with pytest.raises(RequestError, match="without running it"):
        VGGishEmbedding(tmp_path / "hostile.pth", sha256(tmp_path / "hostile.pth"))
    assert not (tmp_path / "ran").exists()


def test_conversion_keeps_rows_and_identity(tmp_path: Path) -> None:
    tiny_vggish(tmp_path / "tiny.pth")
    found = sha256(tmp_path / "tiny.pth")
    converted = convert_weights(tmp_path / "tiny.pth", tmp_path / "tiny.safetensors", found)
    first, second = VGGishEmbedding(tmp_path / "tiny.pth", found), VGGishEmbedding(converted)
    np.testing.assert_array_equal(first.rows(sound(2.0)), second.rows(sound(2.0)))
    assert first.identity == second.identity


def test_published_weights_are_downloaded_checked_and_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_vggish(tmp_path / "release.pth")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(vggish, "WEIGHTS_URL", (tmp_path / "release.pth").as_uri())
    monkeypatch.setattr(vggish, "WEIGHTS_SHA256", sha256(tmp_path / "release.pth"))
    rows = VGGishEmbedding().rows(sound(1.0))
    assert [path.name for path in (tmp_path / "cache" / "vggish").iterdir()] == [vggish.CONVERTED_NAME]
    (tmp_path / "release.pth").unlink()
    np.testing.assert_array_equal(VGGishEmbedding().rows(sound(1.0)), rows)


def test_download_keeps_nothing_of_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(b"other content")
    with pytest.raises(RequestError, match="expected 00"):
        download((tmp_path / "source.bin").as_uri(), tmp_path / "kept" / "file.bin", "00")
    assert not list((tmp_path / "kept").iterdir())
    with pytest.raises(RequestError, match="cannot download"):
        download((tmp_path / "absent.bin").as_uri(), tmp_path / "kept" / "file.bin", "00")


def test_vggish_weights_may_lie_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checks as for a local file; the address names repository, revision and file."""
    import huggingface_hub

    tiny_vggish(tmp_path / "tiny.pth")
    asked: list[tuple[str, str, str | None]] = []

    def answer(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        if file != "sub/tiny.pth":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such file here")
        return str(tmp_path / "tiny.pth")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
    found = VGGishEmbedding("hf://someone/vggish@abc/sub/tiny.pth", sha256(tmp_path / "tiny.pth"))
    assert asked == [("someone/vggish", "sub/tiny.pth", "abc")]
    local = VGGishEmbedding(tmp_path / "tiny.pth", sha256(tmp_path / "tiny.pth"))
    assert found.identity == local.identity
    with pytest.raises(RequestError, match="expected 1008697624580379"):
        VGGishEmbedding("hf://someone/vggish/sub/tiny.pth")
    with pytest.raises(RequestError, match="state the sha256"):
        VGGishEmbedding("hf://someone/vggish/sub/tiny.safetensors")
    with pytest.raises(RequestError, match="no such file here"):
        VGGishEmbedding("hf://someone/vggish/absent.pth")
    with pytest.raises(RequestError, match="OWNER/NAME/PATH"):
        VGGishEmbedding("hf://someone/vggish.pth")


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
        EmbeddingSource("clap", str(tmp_path), sha256(tmp_path / "model.safetensors"), window_s=1.0)
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
    embedding = load_embedding(EmbeddingSource("encodec", str(tmp_path), window_s=0.4))
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


def test_requests_that_cannot_be_served_say_why(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"choose one of logmel, vggish"):
        load_embedding(EmbeddingSource("vgish"))
    with pytest.raises(RequestError, match="'logmel' does not take layer, weights"):
        load_embedding(EmbeddingSource("logmel", weights="x", layer=3))
    with pytest.raises(RequestError, match="the folder does not exist"):
        load_embedding(EmbeddingSource("clap", str(tmp_path / "absent")))
    with pytest.raises(RequestError, match=r"holds none of model\.safetensors"):
        load_embedding(EmbeddingSource("clap", str(tmp_path)))
