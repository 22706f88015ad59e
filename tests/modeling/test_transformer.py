"""The backbone's parts against formulae written out, and its cached path against the whole sequence."""

import math

import pytest
import tiny_models
import torch
from tiny_models import TINY, louden

from hafm_lightning.kernels import BACKENDS
from hafm_lightning.kernels.base import Backend
from hafm_lightning.modeling.attention import WholeSequence
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache, Prefill
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions
from hafm_lightning.modeling.transformer import (
    GEGLU,
    Attention,
    BackboneConfig,
    RMSNorm,
    Transformer,
)

pytestmark = pytest.mark.usefixtures("kernels")


def fitted(module):
    """The module with the kernels under test."""
    (Backend() if tiny_models.KERNELS == "none" else BACKENDS["cpu"]).for_training(module)
    return module


def whole(module, positions):
    """The mixer of a whole sequence."""
    return WholeSequence(module.sequence_bias(positions), module.table())


def setting(steps=10, config=TINY):
    """A backbone, inputs ``[2, S, D]``, and the bias module with its positions."""
    positions = StepPositions.of(SequenceLayout.of([], "instrumental_semantic").plan(steps), "cpu")
    module = RelativePosition(config.heads, "index")
    fitted(module)
    backbone = fitted(Transformer(config).eval())
    louden(backbone)
    louden(module, seed=1)
    x = torch.randn(2, steps, config.width, generator=torch.Generator().manual_seed(2))
    return backbone, x, module, positions


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    norm = RMSNorm(5)
    louden(norm)
    x = torch.randn(2, 3, 5)
    x[0, 0] = 0  # the epsilon keeps silence finite
    for b in range(2):
        for s in range(3):
            values = x[b, s].tolist()
            root = math.sqrt(sum(value**2 for value in values) / 5 + 1e-6)
            expected = [value / root * weight for value, weight in zip(values, norm.weight.tolist(), strict=True)]
            assert norm(x)[b, s].tolist() == pytest.approx(expected, abs=1e-6)


def test_rms_norm_computes_in_float32():
    norm, x = RMSNorm(64), (torch.randn(3, 64) * 300).half()
    assert norm(x).dtype == torch.float16
    torch.testing.assert_close(norm(x), norm(x.float()).half())  # squares of 300 overflow half precision


def test_geglu_gates_with_the_exact_gelu():
    layer = GEGLU(3, 4)
    louden(layer)
    x = torch.randn(3)
    expand = [
        sum(w * v for w, v in zip(row, x.tolist(), strict=True)) + bias
        for row, bias in zip(layer.expand.weight.tolist(), layer.expand.bias.tolist(), strict=True)
    ]
    inner = [
        value * gate * 0.5 * (1 + math.erf(gate / math.sqrt(2)))
        for value, gate in zip(expand[:4], expand[4:], strict=True)
    ]
    expected = [
        sum(w * v for w, v in zip(row, inner, strict=True)) + bias
        for row, bias in zip(layer.contract.weight.tolist(), layer.contract.bias.tolist(), strict=True)
    ]
    assert layer(x).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("part", ["norm", "feedforward"])
def test_training_has_the_gradients_of_the_plain_formula(part, rows):
    """The CPU may train these parts by gradients of its own; autograd through the formula in float64 is the judge."""
    layer = fitted(RMSNorm(12) if part == "norm" else GEGLU(12, 7))
    louden(layer)
    x = torch.randn(2, rows, 12, requires_grad=True)
    weight = torch.randn(2, rows, 12)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad((layer(x) * weight).sum(), inputs)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    if part == "norm":
        output = exact[0] / (exact[0].square().mean(-1, keepdim=True) + 1e-6).sqrt() * exact[1]
    else:
        value, gate = (exact[0] @ exact[1].T + exact[2]).chunk(2, -1)
        output = (value * gate * (1 + torch.erf(gate / math.sqrt(2))) / 2) @ exact[3].T + exact[4]
    torch.testing.assert_close(layer(x).double(), output, atol=1e-5, rtol=1e-5)
    for mine, true in zip(found, torch.autograd.grad((output * weight).sum(), exact), strict=True):
        torch.testing.assert_close(mine.double(), true, atol=1e-4, rtol=1e-4)


def test_the_inner_width_is_two_thirds_as_the_papers_counts_need():
    assert BackboneConfig().inner_width == 1365
    assert BackboneConfig().head_width == 64
    assert GEGLU(512, 1365).expand.weight.shape == (2730, 512)


def test_queries_and_keys_are_normalised_so_that_their_scale_does_not_matter():
    layer = Attention(TINY)
    louden(layer)
    x = torch.randn(2, 6, 16)
    queries, keys, values = layer.split(x)
    projected = (x @ layer.project_in.weight.T + layer.project_in.bias).view(2, 6, 3, 2, 8)
    for found, number, norm in ((queries, 0, layer.query_norm), (keys, 1, layer.key_norm)):
        raw = projected[:, :, number].transpose(1, 2)  # [B, H, S, d]
        root = (raw.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(found, raw / root * norm.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, projected[:, :, 2].transpose(1, 2))
    bound = 8 * layer.query_norm.weight.abs().max() * layer.key_norm.weight.abs().max()
    assert (queries @ keys.transpose(2, 3)).abs().max() <= bound + 1e-4


@pytest.mark.parametrize("first", [0, 1, 4, 9])
def test_prefill_and_cached_steps_equal_the_whole_sequence(first):
    backbone, x, module, positions = setting()
    with torch.no_grad():
        expected = backbone(x, whole(module, positions))
        cache = KeyValueCache(TINY, 2, 10, "cpu", torch.float32)
        parts = []
        if first:
            shorter = StepPositions(positions.segment[:first], positions.ticks[:first], 0)
            parts.append(backbone(x[:, :first], Prefill(cache, whole(module, shorter))))
        steps = torch.arange(10)
        for step in range(first, 10):
            bias = module.bias(positions, steps[step : step + 1], steps[: step + 1])
            parts.append(backbone(x[:, step : step + 1], CachedSteps(cache, step, bias)))
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


def test_several_steps_at_once_through_the_cache():
    backbone, x, module, positions = setting()
    steps = torch.arange(10)
    with torch.no_grad():
        cache = KeyValueCache(TINY, 2, 10, "cpu", torch.float32)
        parts = [
            backbone(
                x[:, start:stop], CachedSteps(cache, start, module.bias(positions, steps[start:stop], steps[:stop]))
            )
            for start, stop in ((0, 3), (3, 4), (4, 10))
        ]
        torch.testing.assert_close(torch.cat(parts, 1), backbone(x, whole(module, positions)), atol=1e-5, rtol=1e-5)


def test_the_last_layer_computes_the_steps_asked_for_alone():
    backbone, x, module, positions = setting()
    mixer = whole(module, positions)
    torch.testing.assert_close(backbone(x, mixer, 4), backbone(x, mixer)[:, 4:], atol=1e-6, rtol=1e-6)


def test_the_cache_is_written_in_place_and_refuses_more_than_it_holds():
    cache = KeyValueCache(TINY, 1, 4, "cpu", torch.float32)
    memory = cache.keys.data_ptr()
    ones = torch.ones(1, 2, 2, 8)
    cache.write(1, 2, ones, 2 * ones)
    cache.write(1, 0, 3 * ones[:, :, :1], 4 * ones[:, :, :1])
    assert cache.keys.data_ptr() == memory
    assert cache.keys[1, 0, 0, :, 0].tolist() == [3, 0, 1, 1]
    assert cache.values[1, 0, 0, :, 0].tolist() == [4, 0, 2, 2]
    assert (cache.keys[0] == 0).all()
    with pytest.raises(ValueError, match="holds 4 steps, step 5"):
        cache.write(0, 3, ones, ones)


def test_recomputing_layers_changes_neither_output_nor_gradients():
    results = []
    for recompute in (False, True):
        config = BackboneConfig(layers=2, width=16, heads=2, feedforward=24, checkpoint_layers=recompute)
        backbone, x, module, positions = setting(config=config)
        backbone.train()
        output = backbone(x, whole(module, positions))
        output.square().mean().backward()
        results.append([output, *(p.grad for p in (*backbone.parameters(), *module.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_acts_in_training_only():
    config = BackboneConfig(layers=1, width=16, heads=2, feedforward=24, dropout=0.5)
    backbone, x, module, positions = setting(config=config)
    mixer = whole(module, positions)
    assert torch.equal(backbone(x, mixer), backbone(x, mixer))
    backbone.train()
    assert not torch.equal(backbone(x, mixer), backbone(x, mixer))


def test_a_new_stack_passes_its_input_on_almost_unchanged():
    """Residual branches start small, whatever the depth."""
    torch.manual_seed(0)
    config = BackboneConfig(layers=12, width=64, heads=4, feedforward=96)
    positions = StepPositions.of(SequenceLayout.of([], "instrumental_semantic").plan(5), "cpu")
    module = RelativePosition(4, "index")
    x = torch.randn(1, 5, 64)
    output = fitted(Transformer(config))(x, whole(module, positions))
    norm = x / x.square().mean(-1, keepdim=True).sqrt()
    assert torch.nn.functional.cosine_similarity(output, norm, dim=-1).min() > 0.99


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"width": 100, "heads": 8}, "multiple of heads"),
        ({"layers": 0}, "at least one layer"),
        ({"feedforward": 1}, "feedforward"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_sizes_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        BackboneConfig(**wrong)
