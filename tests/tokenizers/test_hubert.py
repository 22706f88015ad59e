"""HuBERT tokens against transformers run in full, with tiny models of the real class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tokenizers import noise, save_encodec, save_hubert

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers import load_tokenizer
from hafm_lightning.tokenizers.hubert import HubertFeatures, HubertTokenizer

CENTROIDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hubert")
    save_hubert(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HubertTokenizer:
    clips = [clip.numpy() for clip in noise(4, 16000, seed=3)]
    features = HubertFeatures.from_pretrained(folder, layer=2)
    return HubertTokenizer.train(clips, features, seed=0, vocabulary=CENTROIDS)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_layer_is_the_output_of_that_layer_in_base_and_large(tmp_path: Path, large: bool, layer: int) -> None:
    model = save_hubert(tmp_path, large=large)
    features = HubertFeatures.from_pretrained(tmp_path, layer=layer, do_normalize=False)
    audio = noise(1, 6400)
    expected = model(torch.nn.functional.pad(audio, (40, 40)), output_hidden_states=True).hidden_states[layer]
    assert torch.equal(features(audio), expected)


def test_the_last_layer_of_large_has_no_norm_of_its_own(tmp_path: Path) -> None:
    model = save_hubert(tmp_path, large=True, layers=3)
    outputs = []
    model.encoder.layers[2].register_forward_hook(lambda module, args, output: outputs.append(output))
    audio = noise(1, 3200)
    normed = model(torch.nn.functional.pad(audio, (40, 40))).last_hidden_state
    found = HubertFeatures.from_pretrained(tmp_path, layer=3, do_normalize=False)(audio)
    assert torch.equal(found, outputs[0])
    assert not torch.allclose(found, normed)


def test_only_the_layers_asked_for_are_loaded(folder: Path) -> None:
    features = HubertFeatures.from_pretrained(folder, layer=2)
    assert len(features.model.encoder.layers) == 2
    assert features.model.dtype == torch.float32
    assert not features.model.training
    assert features.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("frames", [1, 7, 500])
def test_frames_are_exact(folder: Path, frames: int) -> None:
    features = HubertFeatures.from_pretrained(folder, layer=1)
    assert features.padding == 40
    assert features(noise(1, frames * 320)).shape == (1, frames, 16)


def test_a_clip_does_not_depend_on_its_batch(tokenizer: HubertTokenizer) -> None:
    audio = noise(3, 16000, seed=9)
    together = tokenizer.features(audio)
    for row in range(3):
        assert torch.equal(together[row], tokenizer.features(audio[row : row + 1])[0])
        assert torch.equal(tokenizer.encode(audio)[row], tokenizer.encode(audio[row : row + 1])[0])


@pytest.mark.parametrize("do_normalize", [True, False])
def test_normalisation_is_that_of_the_feature_extractor(folder: Path, do_normalize: bool) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    features = HubertFeatures.from_pretrained(folder, layer=1, do_normalize=do_normalize)
    audio = noise(2, 6400) + 0.3
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    expected = extractor(list(audio.numpy()), sampling_rate=16000, return_tensors="np")["input_values"]
    prepared = features.prepare(audio)
    np.testing.assert_allclose(prepared[:, 40:-40].numpy(), expected, atol=2e-5)
    assert not prepared[:, :40].any()
    assert not prepared[:, -40:].any()


@pytest.mark.parametrize(("stated", "expected"), [(True, True), (False, False), (None, True)])
def test_normalisation_is_pinned_from_the_checkpoint(tmp_path: Path, stated: bool | None, expected: bool) -> None:
    save_hubert(tmp_path, do_normalize=stated)
    features = HubertFeatures.from_pretrained(tmp_path, layer=1)
    assert features.do_normalize is expected
    assert features.settings["do_normalize"] is expected


def test_ids_are_the_nearest_centroids(tokenizer: HubertTokenizer) -> None:
    audio = noise(2, 6400, seed=5)
    ids = tokenizer.encode(audio)
    assert ids.shape == (2, 1, 20)
    assert ids.dtype == torch.int64
    distances = torch.cdist(tokenizer.features(audio).double(), tokenizer.centroids.double())
    assert torch.equal(ids[:, 0], distances.argmin(dim=-1))
    assert len(ids.unique()) > 1


def test_float32_is_kept_whatever_the_caller_set(tokenizer: HubertTokenizer) -> None:
    audio = noise(1, 6400)
    expected = tokenizer.features(audio)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(tokenizer.features(audio), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_saved_by_reference_and_loaded(tokenizer: HubertTokenizer, folder: Path, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    description = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    assert description["report"]["origin"]["source"] == str(folder)
    assert description["report"]["kmeans"]["points"] == 200
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.identity == tokenizer.identity
    audio = noise(1, 6400, seed=6)
    assert torch.equal(loaded.encode(audio), tokenizer.encode(audio))


@pytest.mark.parametrize("large", [False, True])
def test_saved_with_weights_needs_nothing_else(tmp_path: Path, large: bool) -> None:
    save_hubert(tmp_path / "m", large=large)
    features = HubertFeatures.from_pretrained(tmp_path / "m", layer=2)
    tokenizer = HubertTokenizer(features, torch.randn(CENTROIDS, 16))
    tokenizer.save(tmp_path / "t", include_weights=True)
    (tmp_path / "m" / "model.safetensors").unlink()
    loaded = HubertTokenizer.load(tmp_path / "t")
    audio = noise(1, 6400)
    assert torch.equal(loaded.encode(audio), tokenizer.encode(audio))
    assert loaded.identity == tokenizer.identity


def test_other_weights_are_refused(tokenizer: HubertTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    other = save_hubert(tmp_path / "other")
    with torch.no_grad():
        other.encoder.layers[0].attention.q_proj.weight[0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(RequestError, match="sha256"):
        HubertTokenizer.load(tmp_path / "t", weights=tmp_path / "other")


def test_layers_above_do_not_count_in_the_identity(tokenizer: HubertTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    other = save_hubert(tmp_path / "other")
    with torch.no_grad():
        other.encoder.layers[3].attention.q_proj.weight.zero_()
    other.save_pretrained(tmp_path / "other")
    assert HubertTokenizer.load(tmp_path / "t", weights=tmp_path / "other").identity == tokenizer.identity


def test_refusals_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        HubertFeatures.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="local folder"):
        HubertFeatures.from_pretrained(folder, revision="main")
    with pytest.raises(RequestError, match="has 4 layers"):
        HubertFeatures.from_pretrained(folder, layer=5)
    with pytest.raises(RequestError, match="not reachable"):
        HubertFeatures.from_pretrained("nobody/no-such-hubert")
    save_encodec(tmp_path / "encodec")
    with pytest.raises(RequestError, match="type 'encodec', expected 'hubert'"):
        HubertFeatures.from_pretrained(tmp_path / "encodec", layer=1)
    with pytest.raises(RequestError, match="width 16"):
        HubertTokenizer(HubertFeatures.from_pretrained(folder, layer=1), torch.zeros(5, 17))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_hubert(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=str(tmp_path)):
        HubertFeatures.from_pretrained(tmp_path, layer=1)
    weights.unlink()
    with pytest.raises(RequestError, match="not reachable"):
        HubertFeatures.from_pretrained(tmp_path, layer=1)


def test_a_checkpoint_without_some_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_hubert(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    del arrays["encoder.layers.0.attention.q_proj.weight"]
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"1 weights of \w+ are missing in"):
        HubertFeatures.from_pretrained(tmp_path, layer=1)


def test_another_frame_rate_is_refused(tmp_path: Path) -> None:
    from tiny_tokenizers import hubert_config
    from transformers import HubertModel

    config = hubert_config()
    config.conv_stride = (5, 2, 2, 2, 2, 2, 1)
    HubertModel(config).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="every 160 samples"):
        HubertFeatures.from_pretrained(tmp_path, layer=1)


def test_bad_audio_is_refused(tokenizer: HubertTokenizer) -> None:
    with pytest.raises(ValueError, match="multiple of 320"):
        tokenizer.encode(torch.zeros(1, 16001))
    with pytest.raises(ValueError, match=r"\[B, L\]"):
        tokenizer.encode(torch.zeros(16000))
    audio = torch.zeros(2, 3200)
    audio[1, 5] = float("nan")
    with pytest.raises(RequestError, match=r"clip 1 .* NaN"):
        tokenizer.encode(audio)
