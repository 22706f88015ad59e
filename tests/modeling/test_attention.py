"""Attention over whole sequences against plain float64 attention, in values, gradients and memory."""

import math
from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, gradients, plain_attention, setting
from attention_kinds import BIASES, attend
from tiny_models import tiny_config, tiny_model, tiny_streams

from hafm_lightning.modeling import attention
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions


@pytest.mark.parametrize("block", [5, 16, 256])
@pytest.mark.parametrize("case", CASES)
def test_blocks_of_queries_equal_plain_attention_in_values_and_gradients(case, block, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", block)
    module, positions, qkv = setting(case)
    assert len(module.sequence_bias(positions).blocks) == math.ceil(positions.steps / block)
    output, expected = attend("plain", module, positions, qkv), plain_attention(qkv, module, positions)
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
        torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_block_takes_the_keys_that_it_can_see_and_no_others(case, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 7)
    module, positions, _ = setting(case)
    steps = torch.arange(positions.steps)
    seen = module.rows(positions, steps, steps) != module.masked_row
    for start, stop, keys in module.sequence_bias(positions).blocks:
        assert not seen[start:stop, keys:].any()
        assert seen[start:stop, keys - 1].any()


@pytest.mark.parametrize("kind", BIASES)
def test_what_is_masked_is_never_looked_at(kind):
    """Steps after a causal query may hold anything that is finite: nothing of it arrives, to the last bit."""
    module, positions, qkv = setting("causal-prefix-time", width=16)
    qkv = qkv.detach()
    with torch.no_grad():
        before = attend(kind, module, positions, qkv)
        poisoned = qkv.clone()
        poisoned[1:, :, :, 40:] = 1e4  # keys and values
        after = attend(kind, module, positions, poisoned)
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not torch.equal(before[:, :, 40:], after[:, :, 40:])


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


def scores_written_out(bias, queries, keys, values, table):
    """Attention as a textbook has it, left to autograd."""
    pairs = torch.nn.functional.embedding(bias.rows, table).permute(2, 0, 1)
    return (queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1]) + pairs).softmax(-1) @ values


def test_no_float_is_kept_for_every_pair_of_steps(monkeypatch):
    config = tiny_config("flattened", conditions=("vocal_semantic",), target="instrumental_semantic")
    streams = tiny_streams(config.layout, 400, batch=1)
    pairs = 800 * 800
    for kernels in ("none", "auto"):
        sizes = saved_float_sizes(tiny_model(config, kernels=kernels), streams)
        assert max(sizes) < pairs / 2  # the largest are the logits, 400 x 500
    monkeypatch.setattr(attention.PairBias, "attend", scores_written_out)
    written_out = saved_float_sizes(tiny_model(config, kernels="none"), streams)
    assert max(written_out) >= 2 * pairs  # the hooks do see what all pairs cost


def test_memory_for_scores_does_not_grow_with_the_square_of_the_length(monkeypatch):
    """What the backward pass computes again is one block's scores, never those of all blocks."""
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 8)
    largest, attend_block = [], attention._attend

    def watched(queries, keys, values, table, rows):
        largest.append(rows.numel())
        return attend_block(queries, keys, values, table, rows)

    monkeypatch.setattr(attention, "_attend", watched)
    module, positions, qkv = setting("causal", frames=60)
    output = attend("plain", module, positions, qkv)
    forward = len(largest)
    gradients(output, qkv, module)
    assert len(largest) == 2 * forward == 2 * math.ceil(positions.steps / 8)
    assert max(largest) <= 8 * positions.steps


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_sequences(steps):
    layout = SequenceLayout.of([], "instrumental_semantic")
    positions, module = StepPositions.of(layout.plan(steps), "cpu"), RelativePosition(2, "index")
    qkv = torch.randn(3, 1, 2, steps, 8)
    output = attend("plain", module, positions, qkv)
    torch.testing.assert_close(output.double(), plain_attention(qkv, module, positions), atol=1e-6, rtol=1e-6)


def test_prefixes_of_a_sequence_have_its_positions():
    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_coarse")
    plan = layout.plan(6)
    whole, begun = StepPositions.of(plan, "cpu"), StepPositions.of(plan, "cpu", 3)
    assert begun.steps == 3
    assert begun.condition_steps == min(3, whole.condition_steps)
    assert torch.equal(begun.ticks, whole.ticks[:3])
    assert replace(whole, condition_steps=0).steps == plan.steps
