"""VGGish against a computation without torch, and its weights' way from file, cache and Hub."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
from embedding_sounds import published_log_mel, sha256, sound

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings import vggish
from hafm_lightning.evaluation.embeddings.vggish import VGGish, VGGishEmbedding, convert_weights
from hafm_lightning.files import CACHE_VARIABLE


def tiny_vggish(path: Path) -> VGGish:
    torch.manual_seed(0)
    network = VGGish(channels=(2, 3, 2, 3), hidden=6, dimensions=5)
    torch.save(network.state_dict(), path)
    return network


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


def test_conversion_keeps_rows_and_identity(tmp_path: Path) -> None:
    tiny_vggish(tmp_path / "tiny.pth")
    found = sha256(tmp_path / "tiny.pth")
    convert_weights(tmp_path / "tiny.pth", tmp_path / "tiny.safetensors")
    first, second = VGGishEmbedding(tmp_path / "tiny.pth", found), VGGishEmbedding(tmp_path / "tiny.safetensors")
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
