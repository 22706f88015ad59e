"""T5 buckets against transformers' own, and the rows of every pair of steps against loops."""

import math

import pytest
import torch
from reference_model import exact_bucket
from tiny_models import RICH_CONDITIONS

from hafm_lightning.modeling.layout import TIMELESS, SequenceLayout
from hafm_lightning.modeling.relative_position import (
    BUCKETS,
    MAX_DISTANCE_STEPS,
    MAX_DISTANCE_TICKS,
    RelativePosition,
    StepPositions,
    t5_buckets,
)


@pytest.mark.parametrize("max_distance", [128, 384, 50])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_equal_transformers_t5(bidirectional, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-3000, 3001)  # query - key; T5 counts key - query
    theirs = T5Attention._relative_position_bucket(-distance, bidirectional, BUCKETS, max_distance)
    assert torch.equal(t5_buckets(distance, bidirectional=bidirectional, max_distance=max_distance), theirs)


@pytest.mark.parametrize("max_distance", [MAX_DISTANCE_STEPS, MAX_DISTANCE_TICKS])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_equal_exact_integer_arithmetic(bidirectional, max_distance):
    distances = range(-700, 701)
    found = t5_buckets(torch.tensor(distances), bidirectional=bidirectional, max_distance=max_distance).tolist()
    assert found == [exact_bucket(distance, bidirectional, max_distance) for distance in distances]
    assert set(found) <= set(range(BUCKETS))


def test_an_index_bias_cannot_tell_distant_conditions_apart_and_a_time_bias_can():
    """The weakness of a long prefix (PAPER: conditions lie 500 steps and more before what they describe)."""
    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_semantic")
    positions = StepPositions.of(layout.plan(300), "cpu")
    query, keys = torch.tensor([300 + 100]), torch.arange(50, 151)  # 100 is the frame that sounds together
    by_index = RelativePosition(2, "index", segments=2).rows(positions, query, keys)[0]
    assert len(by_index.unique()) == 1
    by_time = RelativePosition(2, "time", segments=2).rows(positions, query, keys)[0]
    assert len(by_time.unique()) > 10
    assert by_time[keys == 100] == BUCKETS  # its own row of the table across segments
    assert (by_time == BUCKETS).sum() == 1


@pytest.mark.parametrize("prefix_mask", ["causal", "bidirectional"])
@pytest.mark.parametrize("kind", ["time", "index"])
@pytest.mark.parametrize("pattern", ["flattened", "delay", "nonautoregressive"])
def test_rows_of_every_pair(pattern, kind, prefix_mask):
    layout = SequenceLayout.of(list(RICH_CONDITIONS), "instrumental_coarse", pattern)
    plan = layout.plan(6)
    module = RelativePosition(2, kind, layout.causal, segments=4, prefix_mask=prefix_mask)
    steps = torch.arange(plan.steps)
    rows = module.rows(StepPositions.of(plan, "cpu"), steps, steps)
    segment, ticks = plan.segment.tolist(), plan.ticks.tolist()
    for q in range(plan.steps):
        for k in range(plan.steps):
            both_conditions = max(q, k) < plan.condition_steps and prefix_mask == "bidirectional"
            if layout.causal and k > q and not both_conditions:
                expected = 2 * BUCKETS if kind == "time" else BUCKETS
            elif kind == "time" and segment[q] != segment[k] and TIMELESS not in (ticks[q], ticks[k]):
                expected = BUCKETS + exact_bucket(ticks[q] - ticks[k], True, 384)
            else:
                expected = exact_bucket(q - k, not layout.causal, 128)
            assert rows[q, k] == expected, (q, k)
    some, few = torch.tensor([7, 3]), torch.tensor([0, 5, 2, 9])
    assert torch.equal(module.rows(StepPositions.of(plan, "cpu"), some, few), rows[some][:, few])


def test_the_bias_is_the_table_at_those_rows_with_minus_infinity_where_masked():
    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_coarse", "delay")
    positions = StepPositions.of(layout.plan(3), "cpu")
    module = RelativePosition(3, "time", segments=2)
    torch.nn.init.normal_(module.within)
    torch.nn.init.normal_(module.across)
    steps = torch.arange(positions.steps)
    rows, bias, table = module.rows(positions, steps, steps), module.bias(positions, steps, steps), module.table()
    assert table.shape == (2 * BUCKETS + 1, 3)
    assert torch.equal(table[:BUCKETS], module.within)
    assert torch.equal(table[BUCKETS:-1], module.across)
    assert bias.shape == (3, positions.steps, positions.steps)
    for head in range(3):
        for q in range(positions.steps):
            for k in range(positions.steps):
                assert bias[head, q, k] == table[rows[q, k], head]
    assert torch.equal(bias[0] == -math.inf, steps[None] > steps[:, None])


@pytest.mark.parametrize(("kind", "segments", "parameters"), [("index", 3, 256), ("time", 1, 256), ("time", 3, 512)])
def test_the_second_table_exists_where_it_is_used_alone(kind, segments, parameters):
    module = RelativePosition(8, kind, segments=segments)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="'rotary'; choose 'time' or 'index'"):
        RelativePosition(2, "rotary")
    with pytest.raises(ValueError, match="unknown prefix_mask"):
        RelativePosition(2, "time", prefix_mask="full")
