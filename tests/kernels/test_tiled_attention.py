"""Attention by compiled tiles against plain float64 attention, in values and gradients, and what the tiles hold."""

import math
import multiprocessing

import pytest
import torch
from attention_cases import CASES, gradients, plain_attention, setting
from attention_kinds import attend

from hafm_lightning.kernels.cpu import codegen
from hafm_lightning.kernels.cpu.codegen import attention, machine_code, vector_code
from hafm_lightning.kernels.cpu.tiled_attention import TiledBias
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not codegen.available(), reason="llvmlite compiles nothing on this processor"),
]


@pytest.mark.parametrize(("frames", "width"), [(6, 8), (12, 16), (18, 24), (30, 64)])
@pytest.mark.parametrize("case", CASES)
def test_tiles_equal_plain_attention_in_values_and_gradients(case, frames, width):
    """Sequences of less than a tile, of odd lengths and of several tiles; widths of whole vectors and others."""
    check_tiles(*setting(case, frames, width=width))


@pytest.mark.parametrize(("lanes", "vectors"), [(4, 2), (4, 4), (8, 2)])
@pytest.mark.parametrize("case", ["causal-prefix-time", "both-ways"])
def test_tiles_are_right_with_the_vectors_of_other_processors(case, lanes, vectors, monkeypatch):
    monkeypatch.setattr(vector_code, "vector_shape", lambda: (lanes, vectors))
    for name in ("forward_function", "backward_function"):
        monkeypatch.setattr(attention, name, getattr(attention, name).__wrapped__)
    check_tiles(*setting(case, 12, width=40))


def check_tiles(module, positions, qkv):
    output = attend("tiled", module, positions, qkv)
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
        monkeypatch.setattr(machine_code, "openmp", lambda: None)
    module, positions, qkv = setting("causal-prefix-time", frames=12, width=16)
    results = []
    for count in (1, 2, 3, 16):  # the last: more than there are heads
        threads(count)
        output = attend("tiled", module, positions, qkv)
        results.append([output, *gradients(output, qkv, module)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # so are all of PyTorch's
def test_a_forked_process_computes_the_same_bits(threads):
    """As workers are: forked when functions are compiled and threads are at work, then held to one thread."""
    threads(2)
    module, positions, qkv = setting("causal", frames=99, width=16)

    def found():
        output = attend("tiled", module, positions, qkv)
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
    output = attend("tiled", module, positions, poisoned)
    bad = torch.zeros_like(output, dtype=torch.bool)
    bad[0, 1, 70] = True
    assert torch.equal(output.isnan(), bad)


def test_each_row_of_biases_is_kept_once():
    module, positions, _ = setting("causal", frames=399)
    tiles = TiledBias.of(module, positions)
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
        attend("tiled", module, positions, qkv[..., 3:, :])


def test_memory_layout_of_the_inputs_does_not_matter():
    module, positions, qkv = setting("causal-prefix-time", width=16)
    strided = qkv.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    one, other = (attend("tiled", module, positions, inputs) for inputs in (qkv, strided))
    torch.testing.assert_close(one, other)
    for a, b in zip(gradients(one, qkv, module), gradients(other, strided, module), strict=True):
        torch.testing.assert_close(a, b)


def test_float32_is_computed_in_and_the_answer_has_the_inputs_precision():
    module, positions, qkv = setting("causal-prefix-time")
    double = attend("tiled", module, positions, qkv.detach().double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, plain_attention(qkv, module, positions), atol=2e-6, rtol=1e-5)
    half = qkv.detach().bfloat16()
    output = attend("tiled", module, positions, half)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, plain_attention(half, module, positions).bfloat16(), atol=1e-2, rtol=1e-2)


def test_plain_gradients_of_padded_widths_are_those_of_the_true_width():
    """Where a hook returns saved tensors in another type, columns of padding must not change the scale."""
    module, positions, qkv = setting("causal", frames=12, width=24)  # padded to 32
    bias, table = TiledBias.of(module, positions), module.table().detach()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.double()):
        output = bias.attend(*qkv, table)
    expected = plain_attention(qkv, module, positions)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad((output * weight).sum(), [qkv])
    (true,) = torch.autograd.grad((expected * weight.double()).sum(), [qkv])
    torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_sequences(steps):
    layout = SequenceLayout.of([], "instrumental_semantic")
    positions, module = StepPositions.of(layout.plan(steps), "cpu"), RelativePosition(2, "index")
    qkv = torch.randn(3, 1, 2, steps, 8)
    output = attend("tiled", module, positions, qkv)
    torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=1e-6, rtol=1e-6)
