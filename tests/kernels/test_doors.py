"""Compiled functions and what they are given: other types and layouts are turned away, no byte beside is touched."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from attention_cases import setting as attention_setting
from tiny_decoding import FRAMES, GUIDED, TARGET, setting

from hafm_lightning.kernels import for_training
from hafm_lightning.kernels.cpu import codegen, compiled_step, rowwise, tiled_attention
from hafm_lightning.kernels.cpu.codegen.doors import Buffer, DoesNotFit, Door
from hafm_lightning.kernels.cpu.compiled_step import CompiledStep
from hafm_lightning.kernels.cpu.packed import pack
from hafm_lightning.kernels.cpu.processor import has
from hafm_lightning.kernels.cpu.tiled_attention import TiledBias
from hafm_lightning.modeling import decoding
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.conditioning import drop_at_random
from hafm_lightning.modeling.sampling import uniform_numbers
from hafm_lightning.modeling.token_scores import token_cross_entropy
from hafm_lightning.modeling.transformer import BackboneConfig

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not codegen.available(), reason="llvmlite compiles nothing on this processor"),
]
OTHER_TYPES = (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
GUARD_BYTES, SENTINEL = 256, 0xA5


class Guards:
    """Memory with bytes before and behind that must stay what they are."""

    def __init__(self) -> None:
        self.whole: list[torch.Tensor] = []

    def room(self, *shape: int, dtype: torch.dtype = torch.float32, zero: bool = False) -> torch.Tensor:
        size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
        whole = torch.full((size + 2 * GUARD_BYTES,), SENTINEL, dtype=torch.uint8)
        self.whole.append(whole)
        inside = whole[GUARD_BYTES : GUARD_BYTES + size]
        if zero:
            inside.zero_()
        return inside.view(dtype).view(shape)

    def holding(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of the same numbers and distances with guards around it."""
        held = self.room(x.numel(), dtype=x.dtype).as_strided(x.shape, x.contiguous().stride(), GUARD_BYTES // 4)
        return held.copy_(x)

    def check(self) -> None:
        assert self.whole
        for whole in self.whole:
            assert bool((whole[:GUARD_BYTES] == SENTINEL).all())
            assert bool((whole[-GUARD_BYTES:] == SENTINEL).all())


@pytest.fixture
def guards(monkeypatch):
    """All room of compiled functions, guarded."""
    from hafm_lightning.kernels.cpu.codegen import norm_rows

    found = Guards()
    for module in (norm_rows, tiled_attention, compiled_step):
        monkeypatch.setattr(module, "room", found.room)
    yield found
    found.check()


def misaligned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, beginning in the middle of a number."""
    held = bytearray(4 * x.numel() + 8)
    found = torch.frombuffer(held, dtype=x.dtype, offset=2, count=x.numel()).view(x.shape)
    return found.copy_(x)


# --- the door itself --------------------------------------------------------------------------------------------

PLAIN = Door("plain", {"x": Buffer(torch.float32, ("rows", 4), written=True)}, {"rows": 2})
LOOSE = Door("loose", {"x": Buffer(torch.float32, ("rows", 4), strided=True)})


def turned_away(door: Door, x: torch.Tensor, match: str, **sizes: int) -> None:
    with pytest.raises(DoesNotFit, match=match):
        door.addresses({"x": x}, sizes)


def test_a_door_lets_in_what_fits_and_names_what_does_not():
    x = torch.zeros(6, 4)
    assert PLAIN.addresses({"x": x}) == {"x": x.data_ptr(), "rows": 6}
    assert LOOSE.addresses({"x": torch.zeros(6, 8)[:, :4]})["x_0"] == 8
    for dtype in OTHER_TYPES:
        turned_away(PLAIN, x.to(dtype), "plain: x is torch")
    turned_away(PLAIN, torch.zeros(4, 6).t(), "not contiguous")
    turned_away(LOOSE, torch.zeros(4, 6).t(), "beside each other")
    turned_away(PLAIN, torch.zeros(3, 4), "no multiple of 2")
    turned_away(PLAIN, torch.zeros(6, 5), "5 where 4 is 4")
    turned_away(PLAIN, x, "6 where rows is 8", rows=8)
    turned_away(PLAIN, torch.zeros(6), "1 dimensions, not 2")
    turned_away(PLAIN, torch.zeros(0, 4), "is empty")
    turned_away(PLAIN, torch.zeros(6, 4, device="meta"), "is on meta")
    turned_away(PLAIN, torch.zeros(6, 4).to_sparse(), "layout")
    turned_away(LOOSE, torch.ones(2, 4, 3, dtype=torch.complex64).conj().imag[..., 0], "opposite sign")
    turned_away(PLAIN, misaligned(x), "multiple of 4 bytes")
    freed = torch.zeros(6, 4)
    freed.untyped_storage().resize_(0)
    turned_away(PLAIN, freed, "beyond its memory")
    with pytest.raises(DoesNotFit, match="missing or unknown"):
        PLAIN.addresses({"y": x})
    shared = Door("shared", {"x": Buffer(torch.float32, ("rows", 4), strided=True, written=True)})
    turned_away(shared, torch.zeros(1, 4).expand(6, 4), "several numbers at one place")
    assert LOOSE.addresses({"x": torch.zeros(1, 4).expand(6, 4)})["x_0"] == 0, "what is read may be shared"


# --- norms ------------------------------------------------------------------------------------------------------


def norm_gradients(x, weight, gradient):
    """Of ``x / rms(x) * weight``, by autograd in float64."""
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    y = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    return torch.autograd.grad(y, [x, weight], gradient.double())


NORM_VIEWS = {
    "whole": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1),
    "every other": lambda x: x[:, ::2],
    "part": lambda x: x[1:, 2:],
    "expanded": lambda x: x[:1].expand_as(x),
    "last dimension apart": lambda x: x.mT.contiguous().mT,
    "misaligned": misaligned,
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("view", NORM_VIEWS)
def test_gradients_of_norms_of_any_view_and_nothing_beside(view, guards):
    x = guards.holding(torch.randn(3, 40, 64))
    x = NORM_VIEWS[view](x).detach().requires_grad_()
    weight = guards.holding(torch.randn(64)).requires_grad_()
    gradient = NORM_VIEWS[view](torch.randn(3, 40, 64))
    found = torch.autograd.grad(rowwise._NormFunction.apply(x, weight, 1e-6), [x, weight], gradient)
    for one, other in zip(found, norm_gradients(x, weight, gradient), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", OTHER_TYPES)
@pytest.mark.parametrize("which", range(4))
def test_the_gradient_of_norms_takes_no_other_type(which, dtype):
    from hafm_lightning.kernels.cpu.codegen.norm_rows import norm_backward

    tensors = [torch.ones(2, 5, 64), torch.ones(64), torch.ones(2, 5, 1), torch.ones(2, 5, 64)]
    norm_backward(*tensors)
    tensors[which] = tensors[which].to(dtype)
    with pytest.raises(DoesNotFit, match="float32"):
        norm_backward(*tensors)


# --- attention --------------------------------------------------------------------------------------------------


def attention_inputs(dtype=torch.float32):
    """Queries, keys, values, table, bias; and masks and biases ``[H, S, S]`` pair by pair."""
    module, positions, qkv = attention_setting("causal-prefix-time", width=16)
    table, steps = module.table().detach(), torch.arange(positions.steps)
    pairs = table.double()[module.rows(positions, steps, steps)].permute(2, 0, 1)
    return [x.to(dtype) for x in qkv.detach()], table, TiledBias.of(module, positions), pairs


def expected_attention(inputs, pairs):
    queries, keys, values = (x.double() for x in inputs)
    return torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5 + pairs, -1) @ values


ATTENTION_VIEWS = {
    "whole": lambda x: x,
    "heads within steps": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "last dimension apart": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:, :1].expand_as(x),
    "misaligned": misaligned,
}


@pytest.mark.parametrize("view", ATTENTION_VIEWS)
def test_attention_of_any_view_and_nothing_beside(view, guards):
    inputs, table, bias, pairs = attention_inputs()
    inputs = [ATTENTION_VIEWS[view](guards.holding(x)).detach().requires_grad_() for x in inputs]
    output = bias.attend(*inputs, table)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = expected_attention(doubles, pairs)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    gradient = ATTENTION_VIEWS[view](torch.randn(output.shape))
    ours = torch.autograd.grad(output, inputs, gradient)
    for one, other in zip(ours, torch.autograd.grad(expected, doubles, gradient.double()), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_attention_of_another_type_is_computed_in_float32(dtype):
    inputs, table, bias, pairs = attention_inputs(dtype)
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    found = bias.attend(*inputs, table)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected_attention(inputs, pairs), atol=tolerance, rtol=tolerance)


def test_no_clips_give_no_results():
    (queries, keys, values), table, bias, _ = attention_inputs()
    assert bias.attend(queries[:0], keys[:0], values[:0], table).shape == queries[:0].shape


def test_what_was_kept_may_come_back_as_another_type():
    inputs, table, bias, pairs = attention_inputs()
    leaves = [x.requires_grad_() for x in inputs]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.double()):
        output = bias.attend(*leaves, table)
    found = torch.autograd.grad(output.sum(), leaves)
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    expected = torch.autograd.grad(expected_attention(doubles, pairs).sum(), doubles)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


def test_a_table_with_too_few_rows_is_refused():
    (queries, keys, values), table, bias, _ = attention_inputs()
    with pytest.raises(ValueError, match="the bias table has 3 rows"):
        bias.attend(queries, keys, values, table[:3])


# --- the compiled step ------------------------------------------------------------------------------------------

STEPS_HERE = pytest.mark.skipif(not has("step fp32"), reason="this processor compiles no decoding steps")
SMALL = BackboneConfig(width=32, layers=2, heads=2, feedforward=50)


@STEPS_HERE
def test_the_compiled_step_turns_away_what_it_cannot_read_and_touches_nothing_beside(guards):
    model, _, _ = setting("delay", "aligned", backbone=SMALL)
    step = pack(copy.deepcopy(model), "fp32", kernel=True).compiled_step
    assert isinstance(step, CompiledStep)
    cache = KeyValueCache(SMALL, 2, 5, "cpu", torch.float32)
    x, bias = guards.holding(torch.randn(2, 1, 32)), torch.randn(2, 1, 3)
    good = CachedSteps(cache, 2, bias)
    plain = copy.deepcopy(cache)
    expected = model.step_logits(x, CachedSteps(plain, 2, bias), None)
    torch.testing.assert_close(step(x, good, None), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.entries, plain.entries, atol=1e-5, rtol=1e-5)
    wrong = [(x.to(dtype), good) for dtype in OTHER_TYPES]
    wrong += [(x, CachedSteps(cache, 2, bias.to(dtype))) for dtype in OTHER_TYPES]
    wrong += [(x[..., :16], good), (x[:1], good), (x[:0], good), (x.expand(2, 2, 32), good)]
    wrong += [(x, CachedSteps(cache, start, bias)) for start in (-1, 3, 5)]
    for other in (torch.bfloat16, torch.float64):
        wrong.append((x, CachedSteps(KeyValueCache(SMALL, 2, 5, "cpu", other), 2, bias)))
    for bad, at in wrong:
        with pytest.raises(DoesNotFit, match="decode_step"):
            step(bad, at, None)
    apart = torch.randn(2, 1, 64)[..., ::2]  # is brought together
    found, expected = step(apart, good, None), step(apart.contiguous(), good, None)
    assert torch.equal(found, expected)


# --- PyTorch's default type -------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other_default(request):
    """Another default type for what follows ``with``."""

    class Other:
        def __enter__(self):
            torch.set_default_dtype(request.param)

        def __exit__(self, *_):
            torch.set_default_dtype(torch.float32)

    yield Other()
    torch.set_default_dtype(torch.float32)


def test_training_does_not_depend_on_the_default_type(other_default):
    model, streams, _ = setting(
        "delay", "aligned", backbone=BackboneConfig(width=64, layers=2, heads=2, feedforward=64)
    )
    for_training(model)
    found = []

    def look():
        logits = model(streams)
        loss = token_cross_entropy(logits, streams[TARGET]).mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])

    look()
    model._biases.clear()
    with other_default:
        look()
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert other.dtype == torch.float32
            assert torch.equal(one, other)


def test_random_numbers_do_not_depend_on_the_default_type(other_default):
    _, streams, _ = setting("delay", "aligned", backbone=SMALL)
    conditions = tuple(setting("delay", "aligned", backbone=SMALL)[0].layout.conditions)
    clips = {name: ids.repeat(20, 1, 1) for name, ids in streams.items()}

    def look():
        torch.manual_seed(3)
        return [uniform_numbers([1, 2], (3,)), uniform_numbers([], (3,)), drop_at_random(clips, conditions, 0.5)]

    expected = look()
    with other_default:
        found = look()
    for one, other in zip(expected[:2], found[:2], strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert all(torch.equal(expected[2][name], found[2][name]) for name in clips)


@pytest.mark.parametrize("way", ["plain", "packed", pytest.param("step", marks=STEPS_HERE)])
def test_decoding_does_not_depend_on_the_default_type(way, other_default):
    model, _, conditions = setting("delay", "aligned", backbone=SMALL)

    def look():
        used = copy.deepcopy(model)
        if way != "plain":
            pack(used, "fp32", kernel=way == "step")
        return decoding.generate(used, conditions, GUIDED, [4, 5])

    expected = look()
    with other_default:
        assert torch.equal(look(), expected)
    assert expected.shape[-1] == FRAMES
