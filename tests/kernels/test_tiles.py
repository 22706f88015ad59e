"""The plan of tiles against the row of every pair, for every geometry and for lengths that no tile divides."""

import pytest
import torch
from attention_cases import CASES, setting

from hafm_lightning.kernels.tiles import ITEM_TILES, TilePlan
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

SIZES = [(16, 16), (32, 16), (16, 64)]


def rows_by_list(tiles, plan, transposed=False):
    """The row of each pair as a kernel reads it from a list; the masked row where no list has a tile."""
    lines, columns = plan.row.shape
    found = torch.full((lines * plan.queries, columns * plan.keys), plan.masked_row)
    visits = torch.zeros(lines, columns, dtype=torch.int64)
    for line in range(tiles.lines):
        constant = []
        for run in range(tiles.run_edges[line], tiles.run_edges[line + 1]):
            constant += [(n, tiles.run_row[run]) for n in range(tiles.run_start[run], tiles.run_stop[run])]
        assert [n for n, _ in constant] == list(range(tiles.edges[line], tiles.lookups[line]))
        lookups = [(n, plan.patterns[tiles.pattern[n]]) for n in range(tiles.lookups[line], tiles.edges[line + 1])]
        for n, rows in constant + lookups:
            query, key = (tiles.tile[n], line) if transposed else (line, tiles.tile[n])
            visits[query, key] += 1
            here = slice(query * plan.queries, (query + 1) * plan.queries)
            found[here, key * plan.keys : (key + 1) * plan.keys] = rows.long() if rows.dim() else int(rows)
    assert visits.max() == 1
    return found


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("frames", [3, 18, 33])
@pytest.mark.parametrize("case", CASES)
def test_both_lists_hold_the_row_of_every_pair(case, frames, queries, keys):
    module, positions, _ = setting(case, frames=frames)
    steps = positions.steps
    expected = module.rows(positions, torch.arange(steps), torch.arange(steps))
    plan = TilePlan.of(module, positions, queries, keys)
    for tiles, transposed in ((plan.by_query, False), (plan.by_key, True)):
        rows = rows_by_list(tiles, plan, transposed)
        assert torch.equal(rows[:steps, :steps], expected)
        assert (rows[:, steps:] == plan.masked_row).all()
        assert (rows != plan.masked_row).any(1).all()  # queries after the end see something, or softmax is no number
        lengths = tiles.edges.diff()[tiles.order.long()]
        assert (lengths.diff() <= 0).all()


def test_far_tiles_of_a_long_sequence_are_constant_and_equal_patterns_are_kept_once():
    module = RelativePosition(1, "index")
    positions = StepPositions(torch.zeros(1024, dtype=torch.int64), torch.arange(1024), 0)
    plan = TilePlan.of(module, positions, 128, 128)
    assert len(plan.patterns) == 2  # on the diagonal, and beside it: distances up to 112 have buckets of their own
    assert (plan.lookup >= 0).sum() == 8 + 7
    assert (plan.row >= 0).sum() == 28 - 7
    assert plan.row.unique().tolist() == [-1, 31]
    assert plan.shares["skipped"] == pytest.approx(28 / 64)


def test_a_pattern_names_the_rows_that_it_holds():
    module, positions, _ = setting("bidirectional-prefix", frames=18)
    plan = TilePlan.of(module, positions, 16, 32)
    edges, rows = plan.rows_of_patterns
    for number, pattern in enumerate(plan.patterns):
        named = rows[edges[number] : edges[number + 1]].tolist()
        assert sorted({*named, plan.masked_row}) == sorted({*pattern.unique().tolist(), plan.masked_row})


def test_a_plan_made_in_inference_serves_training():
    module, positions, _ = setting("causal")
    with torch.inference_mode():
        plan = TilePlan.of(module, positions, 16, 16)
    assert not plan.row.is_inference()
    assert not plan.patterns.is_inference()
    with torch.inference_mode():
        lists = [plan.by_query, plan.by_key]
        rows = plan.rows_of_patterns
    assert not any(tensor.is_inference() for each in lists for tensor in vars(each).values())
    assert not any(tensor.is_inference() for tensor in rows)


@pytest.mark.parametrize("case", CASES)
def test_equal_lookups_lie_beside_each_other_and_each_is_in_one_item(case):
    module, positions, _ = setting(case, frames=33)
    plan = TilePlan.of(module, positions, 16, 16)
    equal, found = plan.equal_lookups, torch.full_like(plan.lookup, -1)
    for pattern, start, stop in zip(equal.pattern, equal.start, equal.stop, strict=True):
        assert 0 < stop - start <= ITEM_TILES
        lines, columns = equal.line[start:stop].long(), equal.column[start:stop].long()
        assert (found[lines, columns] == -1).all()
        found[lines, columns] = pattern
    assert torch.equal(found, plan.lookup)
    assert len(equal.line) == (plan.lookup >= 0).sum()


def test_biases_are_entries_of_the_table_by_query_and_by_key():
    module, positions, _ = setting("causal-prefix-time", frames=18)
    plan, table = TilePlan.of(module, positions, 16, 32), torch.randn(2, module.masked_row + 1)
    biases = plan.biases(table)
    assert biases.shape == (2, len(plan.patterns), 16, 32)
    for head in range(2):
        assert torch.equal(biases[head], table[head][plan.patterns.long()])
    assert torch.equal(plan.biases(table, by_key=True), biases.transpose(2, 3))
