"""Packed layers: the same function as the plain ones, as far as their precision goes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hafm_lightning.accompanist.packing import PackedLinear, can_pack, pack_linears
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel, TokenModelConfig
from hafm_lightning.modeling.transformer import GEGLU, BackboneConfig

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packed linear layers")
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


@pytest.mark.parametrize("precision", TOLERANCE)
def test_padding_an_odd_inner_width_changes_nothing(precision: str) -> None:
    plain = GEGLU(32, 85)
    packed = nn.ModuleList([copy.deepcopy(plain)])
    pack_linears(packed, precision)
    x = torch.randn(2, 7, 32)
    with torch.inference_mode():
        expected, found = plain(x), packed[0](x)
    assert (found - expected).std() <= 2 * TOLERANCE[precision] * expected.std()


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
def test_a_packed_network_gives_the_same_logits_and_tokens(conditioning: str) -> None:
    config = TokenModelConfig(
        conditions=("vocal_semantic", "instrumental_semantic"),
        target="instrumental_coarse",
        conditioning=conditioning,
        backbone=BackboneConfig(width=32, layers=2, heads=2),
    )
    plain = TokenModel(config).eval()
    packed = copy.deepcopy(plain)
    pack_linears(packed, "fp32")
    conditions = {name: torch.randint(500, (2, 1, 4)) for name in config.conditions}
    streams = conditions | {"instrumental_coarse": torch.randint(1024, (2, 4, 6))}
    with torch.inference_mode():
        torch.testing.assert_close(packed(streams), plain(streams), atol=1e-5, rtol=0)
    tokens = [generate(model, conditions, SamplingOptions(), [1, 2]) for model in (plain, packed)]
    assert torch.equal(*tokens)
