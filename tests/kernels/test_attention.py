"""Every attention path against plain float64 attention, in values and gradients, and what the blocks keep."""

import math
import multiprocessing
from unittest.mock import Mock

import pytest
import torch
from attention_cases import CASES, gradients, plain_attention, setting
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.modeling import attention, compiled
from hafm_lightning.modeling.attention import attend, prepare
from hafm_lightning.modeling.compiled import attention_backward, attention_forward, vector_code
from hafm_lightning.modeling.compiled import threads as compiled_threads
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("block", [5, 16, 256])
@pytest.mark.parametrize("case", CASES)
def test_blocks_equal_plain_attention_in_values_and_gradients(case, block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK_STEPS", block)
    module, positions, qkv = setting(case)
    geometry = prepare(module, positions, "blockwise")
    assert len(geometry.blocks) >= math.ceil(positions.steps / block)
    output, expected = attend(*qkv, module.table(), geometry), plain_attention(qkv, module, positions)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("frames", "width"), [(6, 8), (12, 16), (18, 24), (30, 64)])
@pytest.mark.parametrize("case", CASES)
def test_tiles_equal_plain_attention_in_values_and_gradients(case, frames, width):
    """Sequences of less than a tile, of odd lengths and of several tiles; widths of whole vectors and others."""
    check_tiles(*setting(case, frames, width=width))


@pytest.mark.parametrize(("lanes", "vectors"), [(4, 2), (4, 4), (8, 2)])
@pytest.mark.parametrize("case", ["causal-prefix-time", "both-ways"])
def test_tiles_are_right_with_the_vectors_of_other_processors(case, lanes, vectors, monkeypatch):
    monkeypatch.setattr(vector_code, "_vector_shape", lambda: (lanes, vectors))
    monkeypatch.setattr(attention_forward, "forward_function", attention_forward.forward_function.__wrapped__)
    monkeypatch.setattr(attention_backward, "backward_function", attention_backward.backward_function.__wrapped__)
    check_tiles(*setting(case, 12, width=40))


def check_tiles(module, positions, qkv):
    output = attend(*qkv, module.table(), prepare(module, positions, "tiled"))
    expected = plain_attention(qkv, module, positions)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


@pytest.fixture
def threads():
    """Sets the number of PyTorch's threads, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("openmp", [True, False])
def test_tiles_give_the_same_bits_on_any_number_of_threads(openmp, threads, monkeypatch):
    if not openmp:  # where PyTorch brings no such library
        monkeypatch.setattr(compiled_threads, "openmp", lambda: None)
    module, positions, qkv = setting("causal-prefix-time", frames=12, width=16)
    geometry, results = prepare(module, positions, "tiled"), []
    for count in (1, 2, 3, 16):  # the last: more than there are heads
        threads(count)
        output = attend(*qkv, module.table(), geometry)
        results.append([output, *gradients(output, qkv, module)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # so are all of PyTorch's
def test_a_forked_process_computes_the_same_bits(threads):
    """As workers are: forked when functions are compiled and threads are at work, then held to one thread."""
    threads(2)
    module, positions, qkv = setting("causal", frames=99, width=16)
    geometry = prepare(module, positions, "tiled")

    def found():
        output = attend(*qkv, module.table(), geometry)
        return [x.detach().numpy().tobytes() for x in (output, *gradients(output, qkv, module))]

    def child(connection):
        torch.set_num_threads(1)
        connection.send(found())

    here, context = found(), multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(60), "the child hangs"
    assert ours.recv() == here
    process.join()


def test_tiles_pass_on_what_is_no_number():
    """A loss that is NaN must show, or no guard would stop the run."""
    module, positions, qkv = setting("causal", frames=99, width=16)
    poisoned = qkv.detach().clone()
    poisoned[0, 0, 1, 70] = math.nan
    output = attend(*poisoned, module.table(), prepare(module, positions, "tiled"))
    bad = torch.zeros_like(output, dtype=torch.bool)
    bad[0, 1, 70] = True
    assert torch.equal(output.isnan(), bad)


def test_each_row_of_biases_is_kept_once():
    module, positions, _ = setting("causal", frames=399)
    tiles = prepare(module, positions, "tiled").tiles
    assert tiles.first.diff().tolist() == list(range(1, 8))  # nothing above the diagonal
    rows = [tuple(row.tolist()) for row in tiles.rows.view(-1, 64)]
    assert len(set(rows)) == len(rows)
    steps = torch.arange(positions.steps)
    expected = module.rows(positions, steps, steps)
    for block in range(len(tiles.first) - 1):
        for tile in range(tiles.first[block], tiles.first[block + 1]):
            key, found = (
                int(tiles.keys[tile]) * 64,
                torch.stack([tiles.rows[at : at + 64] for at in tiles.places[tile]]),
            )
            here = expected[block * 64 : block * 64 + 64, key : key + 64]
            assert torch.equal(found.t()[: here.shape[0], : here.shape[1]].long(), here)


def test_biases_of_another_length_are_refused():
    module, positions, qkv = setting("causal", frames=21)
    with pytest.raises(ValueError, match=r"these biases are for 24 steps, not for 21"):
        attend(*qkv[..., 3:, :], module.table(), prepare(module, positions, "tiled"))


@pytest.mark.parametrize("together", [1, 2, 4, 6, 100])
def test_clips_and_heads_may_be_taken_in_groups_of_any_size(together, monkeypatch):
    module, positions, qkv = setting("causal-prefix-time", batch=3, heads=4)
    monkeypatch.setattr(attention, "QUERY_BLOCK_STEPS", 16)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", together * 16 * positions.steps)
    output = attend(*qkv, module.table(), prepare(module, positions, "blockwise"))
    expected = plain_attention(qkv, module, positions)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_dense_equals_plain_attention_in_values_and_gradients(case):
    module, positions, qkv = setting(case)
    output = attend(*qkv, module.table(), prepare(module, positions, "dense"))
    expected = plain_attention(qkv, module, positions)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # eager is what this machine can run
@pytest.mark.parametrize("case", CASES)
def test_flex_equals_plain_attention(case):
    """Forward alone: FlexAttention has no backward on the CPU."""
    module, positions, qkv = setting(case, width=16)
    qkv = qkv.detach()
    with torch.no_grad():
        output = attend(*qkv, module.table(), prepare(module, positions, "flex"))
        torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("case", CASES)
def test_flex_on_cuda_equals_plain_attention_in_values_and_gradients(case):
    module, positions, qkv = setting(case, frames=60, width=16)
    expected = plain_attention(qkv, module, positions)
    true = gradients(expected, qkv, module)
    module, moved = module.cuda(), qkv.detach().cuda().requires_grad_()
    positions = StepPositions(positions.segment.cuda(), positions.ticks.cuda(), positions.condition_steps)
    output = attend(*moved, module.table(), prepare(module, positions, "flex"))
    torch.testing.assert_close(output.cpu().double(), expected, atol=1e-2, rtol=1e-2)
    for found, reference in zip(gradients(output, moved, module), true, strict=True):
        torch.testing.assert_close(found.cpu(), reference, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("backend", ["tiled", "blockwise", "dense", "flex"])
def test_what_is_masked_is_never_looked_at(backend):
    """Steps after a causal query may hold anything that is finite: nothing of it arrives, to the last bit."""
    module, positions, qkv = setting("causal-prefix-time", width=16)
    geometry, qkv = prepare(module, positions, backend), qkv.detach()
    with torch.no_grad():
        before = attend(*qkv, module.table(), geometry)
        poisoned = qkv.clone()
        poisoned[1:, :, :, 40:] = 1e4  # keys and values
        after = attend(*poisoned, module.table(), geometry)
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not torch.equal(before[:, :, 40:], after[:, :, 40:])


@pytest.mark.parametrize("backend", ["tiled", "blockwise"])
def test_memory_layout_of_the_inputs_does_not_matter(backend, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK_STEPS", 16)
    module, positions, qkv = setting("causal-prefix-time", width=16)
    geometry = prepare(module, positions, backend)
    strided = qkv.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    one, other = (attend(*inputs, module.table(), geometry) for inputs in (qkv, strided))
    torch.testing.assert_close(one, other)
    for a, b in zip(gradients(one, qkv, module), gradients(other, strided, module), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["tiled", "blockwise"])
def test_float32_is_computed_in_and_the_answer_has_the_inputs_precision(backend):
    module, positions, qkv = setting("causal-prefix-time")
    geometry = prepare(module, positions, backend)
    double = attend(*qkv.detach().double(), module.table(), geometry)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)
    half = qkv.detach().bfloat16()
    output = attend(*half, module.table(), geometry)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, plain_attention(half, module, positions).bfloat16(), atol=1e-2, rtol=1e-2)


def saved_float_sizes(model, streams):
    """Elements of each float tensor that autograd keeps between forward and backward."""
    sizes = []

    def keep(tensor):
        if tensor.is_floating_point():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(streams).mean()
    loss.backward()
    return sizes


def test_the_cpus_paths_keep_no_float_for_every_pair_of_steps():
    config = tiny_config("flattened", conditions=("vocal_semantic",), target="instrumental_semantic")
    streams = tiny_streams(config.layout, 400, batch=1)
    pairs = 800 * 800
    for backend in ("tiled", "blockwise"):
        sizes = saved_float_sizes(tiny_model(config, attention=backend), streams)
        assert max(sizes) < pairs / 2  # the largest are the logits, 400 x 500
    dense = saved_float_sizes(tiny_model(config, attention="dense"), streams)
    assert max(dense) >= 2 * pairs  # the hooks do see what a mask of all pairs costs


def test_every_pair_belongs_to_one_block_at_most_and_all_visible_pairs_to_one(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK_STEPS", 7)
    for case in CASES:
        module, positions, _ = setting(case)
        steps = torch.arange(positions.steps)
        rows = module.rows(positions, steps, steps)
        covered = torch.zeros_like(rows, dtype=torch.bool)
        for block in prepare(module, positions, "blockwise").blocks:
            assert not covered[block.start : block.stop, : block.keys].any()
            covered[block.start : block.stop, : block.keys] = True
            here = rows[block.start : block.stop, : block.keys]
            numbered = torch.arange(module.masked_row + 1.0)[None]  # a table whose biases are the numbers of its rows
            assert torch.equal(block.bias(numbered)[0].flip(0).long(), here)
        assert (rows[~covered] == module.masked_row).all()


def test_backends_are_chosen_by_device_and_refused_by_name():
    module, positions, _ = setting("causal")
    assert prepare(module, positions).backend == "tiled"
    meta = StepPositions(positions.segment.to("meta"), positions.ticks.to("meta"), 0)
    assert prepare(module, meta).backend == "dense"
    for backend in ("tiled", "blockwise"):
        with pytest.raises(ValueError, match=f"'{backend}' runs on the CPU, not on meta"):
            prepare(module, meta, backend)
    with pytest.raises(ValueError, match="unknown attention backend 'flash'"):
        prepare(module, positions, "flash")


@pytest.fixture
def nothing_known():
    """Whether functions can be compiled is found out anew, in this test and after it."""
    compiled.available.cache_clear()
    yield
    compiled.available.cache_clear()


@pytest.mark.usefixtures("nothing_known")
def test_without_llvmlite_the_blocks_are_taken(monkeypatch):
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    module, positions, _ = setting("causal")
    assert prepare(module, positions).backend == "blockwise"
    with pytest.raises(ValueError, match="'tiled' needs llvmlite"):
        prepare(module, positions, "tiled")


@pytest.mark.usefixtures("nothing_known")
def test_where_nothing_can_be_compiled_the_blocks_are_taken_with_one_warning(monkeypatch):
    monkeypatch.setattr(vector_code.llvm, "create_mcjit_compiler", Mock(side_effect=RuntimeError("unknown target")))
    module, positions, _ = setting("causal")
    with pytest.warns(UserWarning, match="unknown target") as warned:
        assert prepare(module, positions).backend == prepare(module, positions).backend == "blockwise"
    assert len(warned) == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_sequences(steps):
    layout = SequenceLayout.of([], "instrumental_semantic")
    positions, module = StepPositions.of(layout.plan(steps), "cpu"), RelativePosition(2, "index")
    qkv = torch.randn(3, 1, 2, steps, 8)
    expected = plain_attention(qkv, module, positions)
    for backend in ("tiled", "blockwise", "dense"):
        output = attend(*qkv, module.table(), prepare(module, positions, backend))
        torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-6)
