"""The Triton kernels in Triton's interpreter against float64 attention: values, gradients, tables; and their wiring.

They need ``TRITON_INTERPRET=1`` before Triton is first imported, so they run in a process of their own: ``make
test-triton``. The interpreter is slow, so sequences are short, and the distance from which on buckets are shared too.
"""

import copy
import gc
import math
import os
import pickle
from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, gradients, plain_attention, setting
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda import CudaBackend, compiled_layers, triton_attention, triton_blocks, triton_trial
from hafm_lightning.kernels.cuda.compiled_layers import CompiledLayer, FilledGEGLU
from hafm_lightning.kernels.cuda.triton_attention import Settings, TritonBias, TritonRelativePosition
from hafm_lightning.kernels.cuda.triton_blocks import Blocks, Setting
from hafm_lightning.kernels.cuda.triton_trial import first_failure
from hafm_lightning.modeling import relative_position
from hafm_lightning.modeling.attention import PairBias
from hafm_lightning.modeling.decoding import Decoder, generate
from hafm_lightning.modeling.relative_position import RelativePosition
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.transformer import GEGLU, Layer

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not interpreted, reason="Triton's interpreter has a process of its own: make test-triton"
)
if interpreted:
    pytest.importorskip("triton", reason="the extra triton is not installed")
    from hafm_lightning.kernels.cuda import triton_attention_kernels

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""The largest difference over the largest value. Numbers of bfloat16 are 2^-8 apart, those of float16 2^-11."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small tiles, and constant tiles in short sequences."""
    small_tiles = {"forward": (32, 16), "query_gradient": (16, 32), "key_gradient": (16, 16)}
    sizes = {kernel: (Blocks(*size, 1, 1),) for kernel, size in small_tiles.items()}
    monkeypatch.setattr(triton_blocks, "SIZES", sizes)
    monkeypatch.setattr(triton_attention, "settings", Settings())
    monkeypatch.setattr(triton_attention, "first_failure", lambda *_: None)  # one test has it
    monkeypatch.setattr(relative_position, "MAX_DISTANCE_STEPS", 17)
    monkeypatch.setattr(relative_position, "MAX_DISTANCE_TICKS", 9)


def difference(found, true):
    largest = max(float(true.detach().abs().max()), 0.1)  # gradients of a single step are zero but for rounding
    return float((found.detach().double() - true.detach().double()).abs().max()) / largest


def check(module, positions, qkv):
    bias = TritonBias.of(module, positions)
    output, expected = bias.attend(*qkv, module.table()), plain_attention(qkv, module, positions)
    assert output.dtype == qkv.dtype
    assert difference(output, expected) < TOLERANCE[qkv.dtype]
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        assert difference(found, true) < TOLERANCE[qkv.dtype]
    return bias


FRAMES = {"causal": 60, "causal-prefix-index": 9, "causal-prefix-time": 9, "both-ways": 30, "delay-prefix-time": 60}
"""Steps of 60 to 170, no multiple of a tile."""
CONSTANT_ROWS = {"causal": {31}, "causal-prefix-index": {31}, "delay-prefix-time": {47}}
"""Rows of constant tiles; 47 is the last one of the past in the table across segments."""


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in (torch.float32, torch.float16)]
    + [("causal", torch.bfloat16), ("bidirectional-prefix", torch.bfloat16)],
    ids=str,
)
def test_every_geometry_equals_float64_attention_in_values_gradients_and_tables(case, dtype):
    module, positions, qkv = setting(case, frames=FRAMES.get(case, 9), heads=1, width=16, batch=1)
    assert positions.steps % 16
    bias = check(module, positions, qkv.detach().to(dtype).requires_grad_())
    assert len(bias.plans) == 3  # a size of tiles for each kernel
    for plan in bias.plans.values():
        assert set(plan.row.unique().tolist()) >= CONSTANT_ROWS.get(case, set())
        assert plan.shares["look-up"] > 0
        assert (plan.shares["skipped"] > 1e-6) == module.causal


@pytest.mark.parametrize("steps", [1, 16, 33])
def test_lengths_that_tiles_divide_or_not(steps):
    module, positions, qkv = setting("causal", frames=63, heads=1, width=16, batch=1)
    positions = replace(positions, segment=positions.segment[:steps], ticks=positions.ticks[:steps])
    check(module, positions, qkv.detach()[..., :steps, :].requires_grad_())


@pytest.mark.parametrize("width", [8, 24])
def test_widths_that_are_no_power_of_two_and_several_clips(width):
    """Rows of a batch, of which half are guidance's null rows, have heads and places of their own."""
    check(*setting("causal-prefix-time", frames=6, heads=3, width=width, batch=2))


def test_heads_side_by_side_in_memory_and_other_layouts():
    module, positions, qkv = setting("causal", frames=30, heads=2, width=16)
    inputs = qkv.detach().permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4).requires_grad_()
    check(module, positions, inputs)
    strided = qkv.detach().transpose(2, 4).contiguous().transpose(2, 4).requires_grad_()
    check(module, positions, strided)


def test_gradients_are_the_same_bits_in_every_run_and_inputs_of_other_types_are_converted():
    module, positions, qkv = setting("causal-prefix-time", frames=6, heads=2, width=16, batch=1)
    bias, runs = TritonBias.of(module, positions), []
    for _ in range(2):
        runs.append(gradients(bias.attend(*qkv, module.table()), qkv, module))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    double = bias.attend(*qkv.detach().double(), module.table())
    assert double.dtype == torch.float64
    queries, keys, values = qkv.detach()
    mixed = bias.attend(queries.half(), keys, values, module.table())
    assert mixed.dtype == torch.float32
    rounded = torch.stack((queries.half().float(), keys, values))
    assert difference(mixed, plain_attention(rounded, module, positions)) < 1e-5


def test_a_bias_first_used_in_inference_serves_training():
    """As in a run that validates before it trains; what autograd keeps must be no tensor of inference."""
    module, positions, qkv = setting("causal", frames=12, heads=1, width=16, batch=1)
    bias = TritonBias.of(module, positions)
    with torch.inference_mode():
        validated = bias.attend(*qkv.detach(), module.table())
    output, expected = bias.attend(*qkv, module.table()), plain_attention(qkv, module, positions)
    torch.testing.assert_close(validated.clone(), output.detach())
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        assert difference(found, true) < TOLERANCE[qkv.dtype]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda bias: pickle.loads(pickle.dumps(bias))])
def test_a_copy_outlives_the_bias_that_it_was_made_of(copied):
    """As the averaged weights of a run, which are a copy of its network."""
    module, positions, qkv = setting("causal", frames=12, heads=1, width=16, batch=1)
    first = TritonBias.of(module, positions)
    expected = first.attend(*qkv.detach(), module.table())
    second = copied(first)
    del first
    gc.collect()
    assert torch.equal(second.attend(*qkv.detach(), module.table()), expected)


def test_what_is_no_number_shows():
    module, positions, qkv = setting("causal", frames=39, heads=1, width=16, batch=1)
    poisoned = qkv.detach().clone()
    poisoned[0, 0, 0, 30] = torch.nan
    output = TritonBias.of(module, positions).attend(*poisoned, module.table())
    assert output.isnan().any(-1)[0, 0].nonzero().flatten().tolist() == [30]


@pytest.fixture
def smallest(monkeypatch):
    """The smallest tiles, which are tried as those of a chip are; distances as long as in this module's networks."""
    monkeypatch.undo()
    monkeypatch.setattr(triton_blocks, "SIZES", dict.fromkeys(triton_blocks.SIZES, (Blocks(16, 16, 1, 1),)))
    for module in (relative_position, triton_trial):
        monkeypatch.setattr(module, "MAX_DISTANCE_STEPS", 17)
    return monkeypatch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernels_are_compared_with_pytorch_before_they_are_used(dtype, smallest):
    assert first_failure(Setting(), torch.device("cpu"), dtype, 16) is None
    with torch.inference_mode():
        found = Settings().of(torch.device("cpu"), dtype, 16, training=False)
    assert found == Setting.first(training=False)


@pytest.mark.parametrize("of", ["forward", "query_gradient", "table_gradient", "key_gradient"])
def test_a_kernel_that_computes_something_else_is_not_used(of, smallest):
    """A compiler's mistake: a result that is never written."""
    smallest.setattr(triton_attention_kernels, f"{of}_kernel", NothingWritten())
    kernel, reason = first_failure(Setting(), torch.device("cpu"), torch.float32, 16)
    assert kernel == {"table_gradient": "query_gradient"}.get(of, of)
    assert "its results differ from PyTorch's by" in reason
    with pytest.warns(UserWarning, match="its results differ from PyTorch's"):
        assert Settings().of(torch.device("cpu"), torch.float32, 16, training=True) is None


class NothingWritten:
    """A kernel that leaves what it should write as it is."""

    def __getitem__(self, grid):
        return lambda *arguments, **settings: None


# --- in networks ----------------------------------------------------------------------------------------


def no_mask_of_all_pairs(*_):
    raise AssertionError("a row for each pair of steps was made")


def test_training_a_network_gives_the_gradients_of_the_plain_one():
    config = tiny_config("delay")
    streams, found = tiny_streams(config.layout, 6, batch=1), []
    for twins in ({RelativePosition: TritonRelativePosition}, {}):
        model = tiny_model(config, kernels="none").train()
        swap(model, twins)
        model(streams).square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_compiled_layer_is_one_graph_around_the_operator(monkeypatch):
    """Attention is one call in it, for all layers and for another bias of the same length."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    function = torch.compile(compiled_layers._run_layer, dynamic=False, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(compiled_layers, "_compiled", lambda: function)
    monkeypatch.setattr(compiled_layers, "_uncompiled", [])
    config, found = tiny_config("delay", "aligned"), []
    streams = tiny_streams(config.layout, 6, batch=1)
    compiled = {RelativePosition: TritonRelativePosition, Layer: CompiledLayer, GEGLU: FilledGEGLU}
    for twins in (compiled, compiled, {}):
        model = tiny_model(config, kernels="none").train()
        swap(model, twins)
        model(streams).square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for one, another, plain in zip(*found, strict=True):
        torch.testing.assert_close(one, plain, atol=1e-5, rtol=1e-4)
        assert torch.equal(one, another)


def test_a_table_is_spread_once_for_all_layers_and_anew_when_it_changes():
    module, positions, _ = setting("causal", frames=30, heads=1, width=16, batch=1)
    bias, table = TritonBias.of(module, positions), module.table().detach()
    first = bias.spread(table, torch.float32)
    assert bias.spread(table, torch.float32) is first
    table.mul_(2)
    second = bias.spread(table, torch.float32)
    assert torch.equal(second.rows[:, :-1], 2 * first.rows[:, :-1])
    del table
    another = bias.spread(torch.full_like(module.table(), 0.5), torch.float32)
    assert (another.rows == 0.5 * math.log2(math.e)).all()
    with torch.inference_mode():
        given = [torch.full((3, 1), value) for value in (1.0, 2.0)]
        assert [float(bias.spread(x, torch.float32).rows[0, 0]) for x in given] == pytest.approx([1.442695, 2.88539])


@pytest.mark.parametrize(("pattern", "conditioning"), [("delay", "prefix"), ("nonautoregressive", "prefix")])
def test_prefill_and_filling_on_a_gpu_make_no_mask_of_all_pairs(pattern, conditioning, monkeypatch):
    """The backend's own choice of modules, with decoding steps that need no graph; guidance doubles the rows."""
    config, frames = tiny_config(pattern, conditioning), 6
    streams = tiny_streams(config.layout, frames, batch=1)
    conditions = {name: ids for name, ids in streams.items() if name != config.target}
    settings = {"options": SamplingOptions(temperature=0), "seeds": [3], "prefix": streams[config.target][..., :3]}
    expected = generate(tiny_model(config, kernels="none"), conditions, **settings)
    model = CudaBackend().for_inference(tiny_model(config, kernels="none"), "fp32")
    assert type(model.relative_position) is TritonRelativePosition
    monkeypatch.setattr("hafm_lightning.kernels.cuda.graphs.GraphDecoder._compute", Decoder._compute)
    monkeypatch.setattr(PairBias, "of", no_mask_of_all_pairs)
    assert torch.equal(generate(model, conditions, **settings), expected)
