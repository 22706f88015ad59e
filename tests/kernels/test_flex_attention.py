"""FlexAttention's settings, tried from the largest to the smallest, with kernels that fail as on small chips."""

import math
import types
import warnings

import pytest
import torch
import yaml
from attention_cases import CASES, gradients, plain_attention, setting
from attention_kinds import attend
from shipped import TRAINING, name_of
from tiny_models import TINY, louden, tiny_config, tiny_model, tiny_streams
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch._inductor.exc import GPUTooOldForTriton, InductorError, TritonMissing
from torch._inductor.runtime.triton_heuristics import NoTritonConfigsError

from hafm_lightning import stages
from hafm_lightning.kernels.base import swap
from hafm_lightning.kernels.cuda import compiled_layers, flex_attention
from hafm_lightning.kernels.cuda.compiled_layers import CompiledLayer
from hafm_lightning.kernels.cuda.flex_attention import FlexBias, FlexRelativePosition
from hafm_lightning.kernels.cuda.flex_tiles import BACKWARD, FORWARD, Setting, Tiles, build_failure
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.transformer import BackboneConfig, Layer
from hafm_lightning.tokens import TokenBatch

TWINS = {"flex": {RelativePosition: FlexRelativePosition}, "plain": {}}
HOPPER_BYTES = 232_448
SMALL_CHIP_BYTES = 101_376


def out_of_shared_memory():
    inner = RuntimeError(
        "No valid triton configs. OutOfMemoryError: out of resource: triton_tem_fused_flex_attention_0"
    )
    return InductorError(inner, None)


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, _gradient):
        raise ctx.error


class FakeChip:
    """Stands in for the compiler: kernels of plain operations, with gradients, some of which cannot be built.

    Args:
        forward: Whether the forward kernel can be built with such ``kernel_options``.
        backward: The same for the backward kernel, which is built at the first backward pass.
        error: Makes what is raised where it cannot.
    """

    def __init__(self, forward=lambda options: True, backward=lambda options: True, error=out_of_shared_memory):
        self.forward, self.backward, self.error = forward, backward, error
        self.tried, self.calls, self.inputs = [], 0, []

    def compile_flex(self, name, device):
        del name, device
        fresh = True

        def kernel(queries, keys, values, score_mod, block_mask, options):
            nonlocal fresh
            options = options or {}
            if fresh:
                self.tried.append(options)
                self.inputs.append((queries, keys, values))
            fresh, self.calls = False, self.calls + 1
            if not self.forward(options):
                raise self.error()
            batch, heads, steps, width = queries.shape
            scores = queries @ keys.transpose(-2, -1) / math.sqrt(width)
            clip, head = torch.arange(batch)[:, None, None, None], torch.arange(heads)[:, None, None]
            query, key = torch.arange(steps, dtype=torch.int32)[:, None], torch.arange(steps, dtype=torch.int32)
            scores = score_mod(scores, clip, head, query, key)
            scores = scores.masked_fill(~block_mask.mask_mod(clip, head, query, key), -math.inf)
            output = scores.softmax(-1).to(values.dtype) @ values
            return output if self.backward(options) else FailsInBackward.apply(output, self.error())

        return kernel


@pytest.fixture
def use(monkeypatch):
    """Puts a fake chip in the compiler's place, with no decision taken so far."""

    def put(chip, shared_bytes=None):
        monkeypatch.setattr(flex_attention, "compile_flex", chip.compile_flex)
        monkeypatch.setattr(flex_attention, "shared_memory_bytes", lambda device: shared_bytes)
        return chip

    monkeypatch.setattr(flex_attention, "_kernels", flex_attention._Kernels())
    return put


def network(config, kind):
    """A tiny network whose attention is of one kind, with no other kernels."""
    model = tiny_model(config, kernels="none")
    swap(model, TWINS[kind])
    return model


def tiles_of(options, way):
    names = {"forward": ("fwd_BLOCK_M", "fwd_BLOCK_N"), "backward": ("bwd_BLOCK_M1", "bwd_BLOCK_N1")}[way]
    return tuple(options[name] for name in names) if names[0] in options else None


def fails_first(count, way):
    """Whether the tiles are none of the first ``count`` of the list."""
    failing = [None if t is None else (t.queries, t.keys) for t in (FORWARD, BACKWARD)[way == "backward"][:count]]
    return lambda options: tiles_of(options, way) not in failing


def check(case, **sizes):
    """Values and gradients against float64; the warnings that were given."""
    module, positions, qkv = setting(case, **sizes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bias = FlexBias.of(module, positions)
        for _ in range(3):
            output = bias.attend(*qkv, module.table())
            expected = plain_attention(qkv, module, positions)
            torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
            for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
                torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("case", CASES)
def test_the_default_kernel_is_used_where_it_can_be_built_and_nothing_is_said(case, use):
    chip = use(FakeChip())
    assert check(case) == []
    assert chip.tried == [{}]


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("count", range(1, len(FORWARD) + 1))
def test_the_next_tiles_are_tried_and_plain_attention_comes_last(way, count, use):
    assert len(FORWARD) == len(BACKWARD)
    chip = use(FakeChip(**{way: fails_first(count, way)}))
    lines = check("causal-prefix-time")
    assert len(lines) == 1
    assert "out of resource" in lines[0]
    assert "\n" not in lines[0]
    assert len(chip.tried) == min(count + 1, len(FORWARD))  # once each, in three rounds
    other = "backward" if way == "forward" else "forward"
    assert {tiles_of(options, other) for options in chip.tried} == {None}  # the other kernel keeps its tiles
    if count == len(FORWARD):
        assert "on blocks of queries" in lines[0]
        assert "several times as long" in lines[0]
    else:
        tiles = (FORWARD if way == "forward" else BACKWARD)[count]
        assert f"{way} tiles of {tiles.queries} x {tiles.keys}" in lines[0]
        assert tiles_of(chip.tried[-1], way) == (tiles.queries, tiles.keys)


@pytest.mark.parametrize("case", CASES)
def test_both_kernels_may_need_smaller_tiles(case, use):
    use(FakeChip(fails_first(2, "forward"), fails_first(3, "backward")))
    (line,) = check(case)
    assert "forward tiles of 128 x 64, 2 stages and backward tiles of 32 x 32, 1 stage: somewhat slower" in line


@pytest.mark.parametrize("case", CASES)
def test_every_geometry_ends_at_plain_attention(case, use):
    use(FakeChip(forward=lambda options: False))
    assert len(check(case)) == 1


def needed_bytes(options, width):
    """What a float32 forward kernel asks for: bias of the tiles loaded ahead, keys and values, queries."""
    queries, keys, stages = (options.get(f"fwd_{name}") for name in ("BLOCK_M", "BLOCK_N", "num_stages"))
    queries, keys, stages = queries or 128, keys or 128, stages or 3
    return 4 * ((stages - 1) * queries * keys + stages * 2 * keys * width + queries * width)


def test_what_cannot_fit_a_small_chip_is_not_tried(use):
    chip = use(FakeChip(lambda options: needed_bytes(options, 64) <= SMALL_CHIP_BYTES), SMALL_CHIP_BYTES)
    (line,) = check("causal", width=64)
    assert [tiles_of(options, "forward") for options in chip.tried] == [None, (64, 64)]
    assert "64 x 64" in line


def test_what_was_measured_on_a_hopper_chip_is_what_the_tiles_are_said_to_need():
    assert Tiles(128, 128, 3, 4).forward_bytes(width=64, itemsize=2) == 245_760
    assert Setting().next_forward(64, 2, HOPPER_BYTES).forward == 1
    assert Setting().next_forward(64, 2, SMALL_CHIP_BYTES).forward == 2
    assert FORWARD[-1].forward_bytes(256, 4) < SMALL_CHIP_BYTES
    assert BACKWARD[-1].backward_bytes(256, 4) < SMALL_CHIP_BYTES


def test_tiles_keep_the_kernels_rules_and_shrink():
    for tiles, count in ((FORWARD, Tiles.forward_bytes), (BACKWARD, Tiles.backward_bytes)):
        assert tiles[0] is None
        sizes = [count(t, 64, 2) for t in tiles[1:]]
        assert sizes == sorted(sizes, reverse=True)
        assert all(128 % t.queries == 0 and 128 % t.keys == 0 for t in tiles[1:])
    assert all(t.keys % t.queries == 0 for t in BACKWARD[1:])


def test_the_options_are_those_that_pytorch_knows():
    known = pytest.importorskip("torch.nn.attention.flex_attention").FlexKernelOptions.__annotations__
    options = Tiles(64, 64, 2, 4).forward_options() | Tiles(64, 64, 2, 4).backward_options()
    assert {name.removeprefix("fwd_").removeprefix("bwd_") for name in options} <= set(known)


def test_another_length_begins_where_the_last_one_ended_and_says_nothing_more(use):
    chip = use(FakeChip(fails_first(2, "forward")))
    assert len(check("causal", frames=6)) == 1
    tried = len(chip.tried)
    assert check("causal", frames=9) == []
    assert len(chip.tried) == tried + 1
    assert tiles_of(chip.tried[-1], "forward") == (128, 64)


def test_inference_needs_no_backward_kernel(use):
    chip = use(FakeChip(backward=lambda options: False))
    module, positions, qkv = setting("causal")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        attend("flex", module, positions, qkv)
    assert chip.tried == [{}]
    assert "on blocks of queries" in check("causal")[0]  # training does


def test_kernels_are_tried_on_zeros_that_lie_in_memory_as_the_inputs_do(use):
    chip = use(FakeChip())
    module, positions, qkv = setting("causal")
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    attend("flex", module, positions, strided)
    for tried, x in zip(chip.inputs[0], strided, strict=True):
        assert not tried.any()
        assert tried.requires_grad
        assert (tried.shape, tried.stride(), tried.dtype) == (x.shape, x.stride(), x.dtype)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
OTHER_ERRORS = {
    "shape": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "value": ValueError("wrong"),
    "memory": OUT_OF_MEMORY,
    "memory-while-compiling": InductorError(OUT_OF_MEMORY, None),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("error", OTHER_ERRORS.values(), ids=OTHER_ERRORS)
def test_other_errors_are_raised(error, way, use):
    chip = use(FakeChip(**{way: lambda options: False}, error=lambda: error))
    module, positions, qkv = setting("causal")
    with pytest.raises(type(error)):
        attend("flex", module, positions, qkv)
    assert len(chip.tried) == 1


@pytest.mark.parametrize(
    "error",
    [
        out_of_shared_memory(),
        InductorError(NotImplementedError("embedding dimension must be at least 16"), None),
        BackendCompilerFailed(lambda: None, AssertionError("x"), None),
        TritonMissing(None),
        GPUTooOldForTriton(types.SimpleNamespace(name="GTX 1080", major=6, minor=1), None),
        NoTritonConfigsError("No valid triton configs. OutOfResources: shared memory"),
        RuntimeError("No valid triton configs. OutOfMemoryError: out of resource: triton_tem_fused_flex_attention_0"),
        RuntimeError("Cannot find a working triton installation. More information ..."),
        torch.OutOfMemoryError("out of resource: triton_tem_fused_flex_attention_0 Required: 245760"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_building_a_kernel_are_known(error, use):
    assert build_failure(error)
    use(FakeChip(forward=lambda options: False, error=lambda: error))
    (line,) = check("causal")
    assert "falls back to PyTorch's operations" in line


def test_checkpointed_layers_try_their_kernels_too(use):
    """The layer's hooks recompute what is saved in it, which may not happen while the kernels are tried."""
    chip = use(FakeChip(fails_first(1, "forward"), fails_first(1, "backward")))
    backbone = BackboneConfig(layers=2, width=16, heads=2, feedforward=24, checkpoint_layers=True)
    config = tiny_config("flattened", backbone=backbone)
    streams, found = tiny_streams(config.layout, 6), {}
    for kind in ("flex", "plain"):
        model = network(config, kind).train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(streams).square().mean().backward()
        found[kind] = [p.grad for p in model.parameters()]
    assert len(chip.tried) == 3
    for one, other in zip(found["flex"], found["plain"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_plain_bias_first_needed_in_inference_serves_training(use):
    use(FakeChip(forward=lambda options: False))
    config = tiny_config("flattened")
    model, streams = network(config, "flex"), tiny_streams(config.layout, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            expected = model(streams)
        output = model(streams)
        output.mean().backward()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_every_shipped_stage_trains_without_a_kernel(path, use):
    """The loss and the gradients are those of ``kernels: none``."""
    chip = use(FakeChip(forward=lambda options: False))
    model = yaml.safe_load(path.read_text())["model"]
    kind, settings = getattr(stages, model["class_path"].rpartition(".")[2]), model["init_args"]
    settings = {name: value for name, value in settings.items() if name not in ("optimizer", "backbone")}
    found = {}
    for attention in ("flex", "plain"):
        stage = kind(**settings | {"backbone": TINY, "guidance_dropout": 0.0, "kernels": "none"})
        swap(stage, TWINS[attention])
        louden(stage)
        layout = stage.model.layout
        batch = TokenBatch(tiny_streams(layout, layout.target.frames(0.24)), ["a@0.00", "b@0.00"])
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = stage.training_loss(batch)
        loss.backward()
        found[attention] = [loss.detach(), *(p.grad for p in stage.model.parameters() if p.grad is not None)]
        assert len(caught) == (1 if attention == "flex" else 0)
    assert len(chip.tried) == len(FORWARD)
    assert found["flex"][0] > 0
    for one, other in zip(found["flex"], found["plain"], strict=True):
        torch.testing.assert_close(one, other)


# --- what is compiled, with Dynamo itself ----------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How many graphs Dynamo made since; nothing is compiled yet."""
    monkeypatch.setattr(flex_attention, "_kernels", flex_attention._Kernels())
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    return lambda: counters["stats"]["unique_graphs"] - before


def attend_without_gradients(frames):
    module, positions, qkv = setting("causal-prefix-time", frames=frames, width=16, batch=1)
    qkv = qkv.detach()  # FlexAttention has no backward on the CPU
    with torch.no_grad():
        output = attend("flex", module, positions, qkv)
    torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_every_one_of_twenty_lengths_is_compiled_once(counted):
    """Dynamo's limit is 8 for a function; beyond it, one runs uncompiled."""
    lengths = range(3, 63, 3)
    assert len(lengths) == 20 > torch._dynamo.config.recompile_limit
    for frames in lengths:
        attend_without_gradients(frames)
    assert counted() == 20
    for frames in lengths:  # modules, geometries and tensors are new ones: what was compiled serves them
        attend_without_gradients(frames)
    assert counted() == 20


def test_one_function_for_all_lengths_would_meet_the_limit(counted, monkeypatch):
    """So the test above can fail."""
    shared = flex_attention.compile_flex("shared", torch.device("cpu"))
    monkeypatch.setattr(flex_attention, "compile_flex", lambda name, device: shared)
    for frames in range(3, 27, 3):
        attend_without_gradients(frames)
    with pytest.warns(UserWarning, match=r"blocks of queries.*fullgraph=True"):
        attend_without_gradients(27)
    assert counted() == 8


def test_kernels_are_kept_up_to_a_number(counted, monkeypatch):
    monkeypatch.setattr(flex_attention, "KEPT_KERNELS", 2)
    for frames in (3, 6, 9, 9, 6, 3):
        attend_without_gradients(frames)
    assert len(flex_attention._kernels._found) == 2
    assert counted() == 4


def test_with_the_compiler_switched_off_plain_attention_is_used_and_told(counted):
    with torch.compiler.set_stance("force_eager"), pytest.warns(UserWarning, match="torch.compile is switched off"):
        attend_without_gradients(6)
    assert counted() == 0


def trained(model, streams):
    """Logits of a forward pass as in training, and the gradients of their mean square, by name."""
    model.zero_grad()
    logits = model(streams)
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def layers_of(monkeypatch):
    """Makes a network with compiled layers, through Dynamo and a backend that runs what Dynamo found."""
    monkeypatch.setattr(compiled_layers, "_uncompiled", [])
    function = torch.compile(compiled_layers._run_layer, dynamic=False, backend="eager")
    monkeypatch.setattr(compiled_layers, "_compiled", lambda: function)

    def make(config, attention="plain"):
        model = tiny_model(config, kernels="none").train()
        swap(model, {Layer: CompiledLayer, **TWINS[attention]})
        return model

    return make


DEEP = BackboneConfig(layers=12, width=16, heads=2, feedforward=24)


def test_compiled_layers_give_the_numbers_of_plain_ones(layers_of, use, counted):
    """One length, twelve layers: each graph serves them all, so the number of graphs does not grow with them."""
    use(FakeChip())
    config = tiny_config("delay", "prefix")
    streams = tiny_streams(config.layout, 6)
    expected, gradients_expected = trained(network(config, "plain").train(), streams)
    found, gradients_found = trained(layers_of(config, "flex"), streams)
    shallow = counted()
    assert shallow > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients_expected.items():
        torch.testing.assert_close(gradients_found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    torch._dynamo.reset()
    deep, before = tiny_config("delay", "prefix", backbone=DEEP), counted()
    model = layers_of(deep, "flex")
    for _ in range(2):
        trained(model, streams)
    assert counted() - before <= shallow + 2


@pytest.mark.filterwarnings("error")  # Dynamo warns of what it cannot trace, as functions with lru_cache
def test_compiled_layers_leave_the_kernels_compiled_beyond_their_own_limit(layers_of, counted):
    config = tiny_config("flattened")
    model = layers_of(config, "flex").requires_grad_(False)  # FlexAttention has no backward on the CPU
    plain = network(config, "plain")
    with torch._dynamo.config.patch(recompile_limit=2):
        for frames in range(3, 21, 3):
            streams = tiny_streams(config.layout, frames)
            torch.testing.assert_close(model(streams), plain(streams), atol=1e-4, rtol=1e-4)
    kernels = flex_attention._kernels._found.values()
    assert len(kernels) == 6
    assert all(kernel is not None for kernel in kernels)
    assert counted() > 6


def test_decoding_steps_and_validation_are_not_compiled(layers_of, counted):
    config = tiny_config("delay", "aligned")
    model, streams = layers_of(config), tiny_streams(config.layout, 6)
    with torch.inference_mode():
        generate(model, streams, SamplingOptions(), [0, 1])
        model(streams)
    model.eval()(streams)
    assert counted() == 0


def test_where_layers_cannot_be_compiled_one_warning_says_so(layers_of, monkeypatch):
    config = tiny_config("delay", "aligned")
    model, streams = layers_of(config), tiny_streams(config.layout, 6)

    def fails(*_):
        raise out_of_shared_memory()

    monkeypatch.setattr(compiled_layers, "_compiled", lambda: fails)
    with pytest.warns(UserWarning, match="layers cannot be compiled here.*out of resource") as warned:
        found, _ = trained(model, streams)
    assert len(warned) == 1
    torch.testing.assert_close(found, trained(network(config, "plain").train(), streams)[0])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # eager is what this machine can run
@pytest.mark.parametrize("case", CASES)
def test_flex_equals_plain_attention(case):
    """Forward alone: FlexAttention has no backward on the CPU."""
    module, positions, qkv = setting(case, width=16)
    with torch.no_grad():
        output = attend("flex", module, positions, qkv.detach())
        torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)


# --- on a GPU -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["causal", "causal-prefix-time"])
def test_all_tiles_give_the_same_numbers_on_cuda(case, dtype, monkeypatch):
    module, positions, qkv = setting(case, frames=60, width=64)
    expected = plain_attention(qkv, module, positions)
    true = gradients(expected, qkv, module)
    module, moved = module.cuda(), qkv.detach().cuda().to(dtype).requires_grad_()
    positions = StepPositions(positions.segment.cuda(), positions.ticks.cuda(), positions.condition_steps)
    bias = FlexBias.of(module, positions)
    for first in range(1, len(FORWARD)):
        kernels = flex_attention._Kernels()
        monkeypatch.setattr(flex_attention, "_kernels", kernels)
        monkeypatch.setattr(flex_attention, "Setting", lambda *_, at=first: Setting(at, at))
        output = bias.attend(*moved, module.table())
        assert all(kernel is not None for kernel in kernels._found.values())
        torch.testing.assert_close(output.cpu().double(), expected, atol=1e-2, rtol=1e-2)
        for found, reference in zip(gradients(output, moved, module), true, strict=True):
            torch.testing.assert_close(found.cpu().to(reference), reference, atol=3e-2, rtol=3e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("case", CASES)
def test_flex_on_cuda_equals_plain_attention_in_values_and_gradients(case):
    module, positions, qkv = setting(case, frames=60, width=16)
    expected = plain_attention(qkv, module, positions)
    true = gradients(expected, qkv, module)
    module, moved = module.cuda(), qkv.detach().cuda().requires_grad_()
    positions = StepPositions(positions.segment.cuda(), positions.ticks.cuda(), positions.condition_steps)
    output = attend("flex", module, positions, moved)
    torch.testing.assert_close(output.cpu().double(), expected, atol=1e-2, rtol=1e-2)
    for found, reference in zip(gradients(output, moved, module), true, strict=True):
        torch.testing.assert_close(found.cpu(), reference, atol=3e-2, rtol=3e-2)
