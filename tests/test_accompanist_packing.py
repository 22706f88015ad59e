"""Packed layers: the same function as the plain ones, as far as their precision goes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_decoding import EVERY, FRAMES, GUIDED, PATTERNS, TARGET, setting
from torch import nn

from hafm_lightning.accompanist.packing import PackedGEGLU, PackedLinear, can_pack, pack
from hafm_lightning.modeling import decoding
from hafm_lightning.modeling.decoding import guided
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.transformer import GEGLU, BackboneConfig, CachedSteps, KeyValueCache

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packed linear layers")
BACKBONE = BackboneConfig(width=32, layers=2, heads=2, feedforward=50)
TOLERANCE = {"fp32": 2e-6, "bf16": 1e-2, "int8": 2e-2}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 70])
def test_a_packed_layer_computes_what_the_plain_one_does(precision: str, rows: int) -> None:
    plain = nn.Linear(64, 96)
    packed = PackedLinear(plain.weight, plain.bias, precision)
    x = torch.randn(1, rows, 64)
    with torch.inference_mode():
        expected, found = plain(x), packed(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).std() <= TOLERANCE[precision] * expected.std()


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_padding_an_odd_inner_width_changes_nothing(precision: str, rows: int) -> None:
    plain = GEGLU(32, 85)
    scale = 1 + 0.2 * torch.randn(32)
    packed = PackedGEGLU(plain, precision, scale)
    x = torch.randn(2, rows, 32)
    with torch.inference_mode():
        expected, found = plain(x * scale), packed(x)
    assert (found - expected).std() <= 2 * TOLERANCE[precision] * expected.std()


def networks(pattern: str, conditioning: str, bias: str = "time") -> tuple[TokenModel, dict[str, torch.Tensor]]:
    """A loud network with weights in every norm, and its conditions."""
    model, _, conditions = setting(pattern, conditioning, bias, backbone=BACKBONE)
    return model, conditions


def packed_copy(model: TokenModel, precision: str) -> TokenModel:
    packed = copy.deepcopy(model)
    pack(packed, precision)
    return packed


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "nonautoregressive"])
def test_a_packed_network_gives_the_same_logits(pattern: str, conditioning: str) -> None:
    plain, conditions = networks(pattern, conditioning)
    streams = conditions | {TARGET: torch.randint(1024, (2, 4, FRAMES))}
    with torch.inference_mode():
        expected = plain(streams)
        torch.testing.assert_close(packed_copy(plain, "fp32")(streams), expected, atol=1e-5, rtol=1e-5)
        for precision in ("bf16", "int8"):
            lost = packed_copy(plain, precision)(streams) - expected
            assert 0 < lost.std() < 5 * TOLERANCE[precision] * expected.std()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("pattern", "conditioning", "bias"), EVERY)
def test_packed_steps_equal_plain_ones(
    pattern: str, conditioning: str, bias: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, conditions = networks(pattern, conditioning, bias)
    seen: list[torch.Tensor] = []

    def record(logits: torch.Tensor, rows: int, options: SamplingOptions) -> torch.Tensor:
        seen.append(logits.clone())
        return guided(logits, rows, options)

    monkeypatch.setattr(decoding, "guided", record)
    runs = []
    for model in (plain, packed_copy(plain, "fp32")):
        seen.clear()
        decoder = decoding.Decoder(model, FRAMES, GUIDED, [0, 1], static=static)
        decoder.condition(conditions)
        runs.append((decoder.advance(FRAMES), torch.stack(seen)))
    assert torch.equal(runs[0][0], runs[1][0])
    torch.testing.assert_close(runs[1][1], runs[0][1], atol=1e-5, rtol=1e-5)


def test_a_packed_network_takes_one_step_at_a_time() -> None:
    plain, _ = networks("parallel", "aligned")
    cache = KeyValueCache(BACKBONE, 1, 4, "cpu", torch.float32)
    with pytest.raises(ValueError, match="one step at a time"):
        packed_copy(plain, "fp32").backbone.cached(
            torch.zeros(1, 2, BACKBONE.width), CachedSteps(cache, 0, 2, torch.zeros(BACKBONE.heads, 2, 2))
        )
