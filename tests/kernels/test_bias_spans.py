"""Blocks of bias written along diagonals: every value as looked up pair by pair, and gradients as their transpose."""

import pytest
import torch
from tiny_models import RICH_CONDITIONS, louden

from hafm_lightning.modeling.bias_spans import ConstantSpan, LookedUpSpan, Span, query_blocks
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

STAGES = {
    "semantic": (("vocal_semantic",), "instrumental_semantic", 120),
    "coarse": (("vocal_semantic", "instrumental_semantic"), "instrumental_coarse", 45),
    "fine": (("instrumental_coarse",), "instrumental_fine", 45),
    "rich": (RICH_CONDITIONS, "instrumental_coarse", 18),
}


def setting(stage, pattern, kind="time", prefix_mask="causal"):
    """Bias module with random tables, the positions of a stage's whole sequence, and all rows of the pairs."""
    conditions, target, frames = STAGES[stage]
    layout = SequenceLayout.of(list(conditions), target, pattern)
    positions = StepPositions.of(layout.plan(frames), "cpu")
    module = RelativePosition(2, kind, layout.causal, 1 + len(conditions), prefix_mask)
    louden(module)
    return module, positions


@pytest.mark.parametrize("prefix_mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("kind", ["time", "index"])
@pytest.mark.parametrize("pattern", ["flattened", "delay", "parallel", "nonautoregressive"])
@pytest.mark.parametrize("stage", STAGES)
def test_blocks_hold_the_bias_of_every_visible_pair(stage, pattern, kind, prefix_mask):
    module, positions = setting(stage, pattern, kind, prefix_mask)
    steps = torch.arange(positions.steps)
    expected, table = module.bias(positions, steps, steps), module.table().t().contiguous()
    for size in (50, 256):
        unseen = torch.ones(positions.steps, positions.steps, dtype=torch.bool)
        for block in query_blocks(module, positions, size):
            assert 0 < block.stop - block.start <= size
            bias = block.bias(table).flip(1)  # queries stand backwards
            assert torch.equal(bias, expected[:, block.start : block.stop, : block.keys])
            assert unseen[block.start : block.stop].all()  # each query belongs to one block
            unseen[block.start : block.stop, : block.keys] = False
        assert not unseen[:, 0].any()
        assert (expected[:, unseen] == -torch.inf).all()


@pytest.mark.parametrize("pattern", ["flattened", "delay", "nonautoregressive"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clips", [1, 3])
def test_collecting_gradients_is_the_transpose_of_writing(clips, stage, pattern):
    """<G, write(table)> = <collect(G), table>, and each entry of the table receives the sum of its places."""
    module, positions = setting(stage, pattern)
    rows = module.masked_row + 1
    table = torch.randn(2, rows, dtype=torch.float64)
    for block in query_blocks(module, positions, 50):
        gradient = torch.randn(2 * clips, block.stop - block.start, block.keys, dtype=torch.float64)
        collected = torch.zeros(2, rows, dtype=torch.float64)
        block.collect(gradient, collected)
        written = (gradient * block.bias(table, clips)).sum()
        torch.testing.assert_close((collected * table).sum(), written)
        numbered = block.bias(torch.arange(rows, dtype=torch.float64).expand(2, -1))[0].long()
        by_head = gradient.unflatten(0, (clips, 2)).sum(0).flatten(1)
        expected = torch.zeros(2, rows, dtype=torch.float64).index_add_(1, numbered.flatten(), by_head)
        torch.testing.assert_close(collected, expected)


@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine"])
def test_the_papers_stages_look_nothing_up_pair_by_pair(stage):
    module, positions = setting(stage, "flattened")
    spans = [span for block in query_blocks(module, positions, 64) for span in block.spans]
    assert spans
    assert not any(isinstance(span, LookedUpSpan) for span in spans)


@pytest.mark.parametrize(("kind", "share"), [("time", 0.5), ("index", 0.65)])
def test_far_keys_are_filled_at_once(kind, share):
    """Of the semantic stage's 10 s most pairs lie beyond the last bucket's edge; a span of one bias holds no other."""
    module = RelativePosition(2, kind, True, 2)
    positions = StepPositions.of(SequenceLayout.of(["vocal_semantic"], "instrumental_semantic").plan(500), "cpu")
    pairs = {ConstantSpan: 0, Span: 0}
    for block in query_blocks(module, positions, 64):
        rows = module.rows(positions, block.order, torch.arange(block.keys))
        for span in block.spans:
            pairs[type(span)] += (block.stop - block.start) * (span.stop - span.start)
            if isinstance(span, ConstantSpan):
                assert (rows[:, span.start : span.stop] == span.row).all()
    assert pairs[ConstantSpan] > share * sum(pairs.values())
