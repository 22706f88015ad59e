"""The digest of weights, the geometry of convolutions, and the precision in which pretrained weights run."""

from __future__ import annotations

import pytest
import torch

from hafm_lightning.tokenizers import pretrained
from hafm_lightning.tokenizers.pretrained import full_precision, stride_and_field, weights_sha256

CPU = torch.device("cpu")


def switches() -> list[str]:
    backends = torch.backends
    parts = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    return [part.fp32_precision for part in parts]


def test_the_digest_of_weights_ignores_names_and_order() -> None:
    one, two = torch.randn(3, 4), torch.randn(5)
    assert weights_sha256([one, two]) == weights_sha256([two, one.clone()])
    assert weights_sha256([one, two]) != weights_sha256([one, two + 1e-7])
    assert weights_sha256([one]) != weights_sha256([one.reshape(4, 3)])


def test_geometry_of_hubert() -> None:
    hop, field = stride_and_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    assert (hop, field) == (320, 400)
    # floor((n - 400) / 320) + 1 frames, so 40 samples on each side make it n / 320.
    assert [(n + 80 - field) // hop + 1 for n in (320, 160000)] == [1, 500]


@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
def test_tf32_is_off_inside_and_as_before_outside(legacy: str) -> None:
    torch.set_float32_matmul_precision(legacy)
    try:
        before = switches()
        with full_precision(CPU):
            assert switches() == ["ieee"] * 4
            assert torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
        assert switches() == before
        assert torch.get_float32_matmul_precision() == legacy
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_caller_who_uses_the_new_switches_is_served_too() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with full_precision(CPU):
            assert switches() == ["ieee"] * 4
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_the_switches_of_older_torch_do_the_same() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pretrained._no_tf32_before_2_9():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_settings_come_back_after_an_error() -> None:
    before = switches(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError), full_precision(CPU):
        torch.zeros(2) @ torch.zeros(3)
    assert (switches(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before
