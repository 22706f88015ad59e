"""FlexAttention's settings, tried from the largest to the smallest, with kernels that fail as on small chips."""

import types
import warnings

import pytest
import torch
from attention_cases import CASES, setting
from attention_kinds import attend
from fake_chip import FakeChip, check, fails_first, out_of_shared_memory, tiles_of
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import GPUTooOldForTriton, InductorError, TritonMissing
from torch._inductor.runtime.triton_heuristics import NoTritonConfigsError

from hafm_lightning.kernels.cuda.flex_tiles import BACKWARD, FORWARD, Tiles, build_failure


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


def test_tiles_keep_the_kernels_rules_and_shrink():
    for tiles in (FORWARD, BACKWARD):
        assert tiles[0] is None
        sizes = [(t.queries * t.keys, t.stages) for t in tiles[1:]]
        assert sizes == sorted(set(sizes), reverse=True)
        assert all(128 % t.queries == 0 and 128 % t.keys == 0 for t in tiles[1:])
    assert all(t.keys % t.queries == 0 for t in BACKWARD[1:])


def test_the_options_are_those_that_pytorch_knows():
    known = pytest.importorskip("torch.nn.attention.flex_attention").FlexKernelOptions.__annotations__
    options = Tiles(64, 64, 2).options("forward") | Tiles(64, 64, 2).options("backward")
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
