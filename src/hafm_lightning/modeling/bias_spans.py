"""Mask and bias of a block of queries, written and differentiated without looking up every pair.

A bias depends on the distance of query and key alone, so a block of it is a matrix with constant diagonals: one short
vector, read with overlapping strides, *is* the block, and the gradient of that vector is the sum along the diagonals.
With time-aligned biases the same holds for each pair of segments, with the lengths of their frames as strides. With
queries counted backwards from the block's last one (strides cannot be negative), the number that a pair stands for is

    query_step * (query // query_group) + key_step * (key // key_group)

where a group is the steps of one frame. Keys so far from all queries of a block that they share the last bucket have
one bias, which is a fill and a sum; in long sequences most keys are of these. What fits no such pattern (the last steps
of a delayed target) is looked up pair by pair. A pattern is kept only if it reproduces :meth:`RelativePosition.rows`
pair for pair, so that that method alone says what is masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions

CONSTANT_KEYS = 32
"""Keys beside each other from which on it pays to treat their common bias apart."""


@dataclass(frozen=True)
class Pattern:
    """Numbers ``0, step, 2 step, ...``, each standing ``group`` times."""

    step: int
    group: int

    @classmethod
    def of(cls, values: Tensor) -> Pattern | None:
        """The pattern of rising values ``[n]`` (the first one counts as 0), or None."""
        steps = values.diff().nonzero().flatten()
        group = int(steps[0]) + 1 if len(steps) else len(values)
        pattern = cls(int(values[group] - values[0]) if len(steps) else 0, group)
        regular = len(values) % group == 0 and torch.equal(values - values[0], pattern.numbers(len(values)))
        return pattern if regular and pattern.step >= 0 else None

    def numbers(self, count: int) -> Tensor:
        """The first ``count`` numbers, int64."""
        return torch.arange(count) // self.group * self.step


@dataclass(frozen=True)
class Span:
    """Keys ``start:stop`` of a query block, in a pattern.

    Attributes:
        start: First key.
        stop: Key after the last one.
        rows: Row of the bias table for each number, int64 ``[L]``.
        queries: Pattern of the queries, counted backwards.
        keys: Pattern of the keys.
    """

    start: int
    stop: int
    rows: Tensor
    queries: Pattern
    keys: Pattern

    def _by_group(self, part: Tensor) -> Tensor:
        """The span's columns ``[..., Q, n]`` as ``[..., Q / group, group, n / group, group]``."""
        return part.unflatten(-1, (-1, self.keys.group)).unflatten(-3, (-1, self.queries.group))  # type: ignore[no-any-return, no-untyped-call]

    def write(self, table: Tensor, bias: Tensor) -> None:
        """Fill the span in ``bias [B, H, Q, N]`` from ``table [H, R]``."""
        part, length = self._by_group(bias[..., self.start : self.stop]), len(self.rows)
        strides = (0, length, self.queries.step, 0, self.keys.step, 0)
        part.copy_(table.index_select(1, self.rows).as_strided(part.shape, strides))

    def collect(self, grad_bias: Tensor, grad_table: Tensor) -> None:
        """Add the span's part of ``grad_bias [B, H, Q, N]`` to ``grad_table [H, R]``."""
        part, length = self._by_group(_over_clips(grad_bias[..., self.start : self.stop])), len(self.rows)
        part = part.sum((2, 4)) if self.queries.group * self.keys.group > 1 else part[:, :, 0, :, 0]
        heads, queries, _ = part.shape
        lines = part.new_zeros(heads, queries, length)  # each query's numbers, under each other
        strides = (queries * length, length + self.queries.step, self.keys.step)
        lines.as_strided(part.shape, strides).copy_(part)
        grad_table.index_add_(1, self.rows, lines.sum(1))


@dataclass(frozen=True)
class ConstantSpan:
    """Keys ``start:stop`` of a query block, all of them at row ``row`` of the bias table."""

    start: int
    stop: int
    row: int

    def write(self, table: Tensor, bias: Tensor) -> None:
        """As :meth:`Span.write`."""
        bias[..., self.start : self.stop] = table[:, self.row, None, None]

    def collect(self, grad_bias: Tensor, grad_table: Tensor) -> None:
        """As :meth:`Span.collect`."""
        grad_table[:, self.row] += grad_bias[..., self.start : self.stop].sum((0, 2, 3))


@dataclass(frozen=True)
class LookedUpSpan:
    """Keys ``start:stop`` of a query block, looked up pair by pair; ``rows`` is int64 ``[Q, stop - start]``."""

    start: int
    stop: int
    rows: Tensor

    def write(self, table: Tensor, bias: Tensor) -> None:
        """As :meth:`Span.write`."""
        part = table.index_select(1, self.rows.flatten())
        bias[..., self.start : self.stop] = part.view(-1, *self.rows.shape)

    def collect(self, grad_bias: Tensor, grad_table: Tensor) -> None:
        """As :meth:`Span.collect`."""
        part = _over_clips(grad_bias[..., self.start : self.stop]).flatten(1)
        grad_table.scatter_add_(1, self.rows.flatten().expand_as(part), part)


AnySpan = Span | ConstantSpan | LookedUpSpan


@dataclass(frozen=True)
class QueryBlock:
    """Queries ``start:stop`` against keys ``0:keys``.

    Attributes:
        start: First query.
        stop: Query after the last one.
        keys: Number of keys.
        order: The queries backwards, int64 ``[Q]``: the order of rows in the methods below.
        spans: Mask and bias, by keys.
    """

    start: int
    stop: int
    keys: int
    order: Tensor
    spans: tuple[AnySpan, ...]

    def bias(self, table: Tensor, clips: int = 1) -> Tensor:
        """Mask and bias of the block, ``[B H, Q, N]`` with queries backwards, from ``table [H, R]`` for ``B`` clips."""
        bias = table.new_empty(clips, table.shape[0], self.stop - self.start, self.keys)
        for span in self.spans:
            span.write(table, bias)
        return bias.flatten(0, 1)

    def collect(self, grad_bias: Tensor, grad_table: Tensor) -> None:
        """Add the gradient of :meth:`bias`, of the same shape, to ``grad_table [H, R]``."""
        grad_bias = grad_bias.unflatten(0, (-1, len(grad_table)))  # type: ignore[no-untyped-call]
        for span in self.spans:
            span.collect(grad_bias, grad_table)


def _over_clips(x: Tensor) -> Tensor:
    """The sum over the first dimension, for one clip without a copy."""
    return x[0] if len(x) == 1 else x.sum(0)


def query_blocks(module: RelativePosition, positions: StepPositions, steps: int) -> tuple[QueryBlock, ...]:
    """Blocks of at most ``steps`` queries, each within a segment, against the keys that they can see."""
    lengths = torch.unique_consecutive(positions.segment, return_counts=True)[1].tolist()
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    blocks = []
    for first, last in pairwise(edges):
        for start in range(first, last, steps):
            stop = min(start + steps, last)
            keys = stop if module.causal else positions.steps
            if module.prefix_mask == "bidirectional" and start < positions.condition_steps:
                keys = max(keys, positions.condition_steps)
            order = torch.arange(stop - 1, start - 1, -1)
            rows = module.rows(positions, order, torch.arange(keys))
            spans = _spans(rows, positions.ticks, order, [edge for edge in edges if edge < keys] + [keys])
            blocks.append(QueryBlock(start, stop, keys, order, spans))
    return tuple(blocks)


def _spans(rows: Tensor, ticks: Tensor, order: Tensor, edges: Sequence[int]) -> tuple[AnySpan, ...]:
    """Spans for ``rows [Q, N]``: one for all keys if the bias goes by steps, else one between each two edges.

    Where keys at the beginning or at the end of a span share one bias, they become a span of their own.
    """
    by_step = Pattern(1, 1)
    whole = _span(rows, 0, edges[-1], by_step, by_step)
    if whole is not None:
        return _without_constants(whole, rows)
    spans: list[AnySpan] = []
    for start, stop in pairwise(edges):
        found = _span(rows, start, stop, by_step, by_step)
        queries, keys = Pattern.of(-ticks[order]), Pattern.of(ticks[start:stop])
        if found is None and queries is not None and keys is not None:
            common = math.gcd(queries.step, keys.step) or 1
            queries = Pattern(queries.step // common, queries.group)
            keys = Pattern(keys.step // common, keys.group)
            found = _span(rows, start, stop, queries, keys)
        if found is None:
            spans.append(LookedUpSpan(start, stop, rows[:, start:stop].contiguous()))
        else:
            spans += _without_constants(found, rows)
    return tuple(spans)


def _without_constants(span: Span, rows: Tensor) -> tuple[AnySpan, ...]:
    """The span, its first and last keys apart where they share one row, in whole groups of keys."""
    part, first, last = rows[:, span.start : span.stop], int(rows[0, span.start]), int(rows[0, span.stop - 1])
    before, after = (_leading(part == first, span.keys.group), _leading((part == last).flip(1), span.keys.group))
    if before == span.stop - span.start:
        return (ConstantSpan(span.start, span.stop, first),)
    middle = _span(rows, span.start + before, span.stop - after, span.queries, span.keys)
    assert middle is not None, "a part of a pattern follows it"
    apart: list[AnySpan] = [middle]
    if before:
        apart.insert(0, ConstantSpan(span.start, middle.start, first))
    if after:
        apart.append(ConstantSpan(middle.stop, span.stop, last))
    return tuple(apart)


def _leading(same: Tensor, group: int) -> int:
    """How many of the first columns of ``same [Q, n]`` hold throughout, in whole groups; 0 where it does not pay."""
    count = int(same.all(0).long().cumprod(0).sum()) // group * group
    return count if count >= CONSTANT_KEYS else 0


def _span(rows: Tensor, start: int, stop: int, queries: Pattern, keys: Pattern) -> Span | None:
    """The span of ``rows [Q, N]`` if the pattern reproduces it."""
    part = rows[:, start:stop]
    numbers = queries.numbers(part.shape[0])[:, None] + keys.numbers(part.shape[1])
    by_number = torch.zeros(int(numbers[-1, -1]) + 1, dtype=torch.int64)
    by_number[numbers] = part
    return Span(start, stop, by_number, queries, keys) if torch.equal(by_number[numbers], part) else None
