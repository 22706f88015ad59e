"""T5 relative position bias, by index and by time; one bucket table serves all layers and every kind of attention.

A T5 bias (arXiv 1910.10683) is a learned scalar for each head and each *bucket* of the distance between query and key:
near distances have a bucket each, far ones share logarithmically wider buckets, and everything beyond ``max_distance``
the last one. Choices:

* ``index``: one table over step distances, as in the paper. With conditions as a prefix, the key that sounds
  together with a query lies hundreds to thousands of steps back, past the last bucket: the bias cannot tell it apart.
* ``time``: within a segment the same table; **across segments a second table, in both directions, over the difference
  in time** on the common clock of :mod:`hafm_lightning.tokens`. Steps without a time (clip-level conditions) keep the
  index table.
* Both tables and one row of ``-inf`` for masked pairs are stacked, so that a single integer for each (query, key) pair
  selects mask and bias at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from hafm_lightning.modeling.attention import PairBias, SequenceBias
from hafm_lightning.modeling.layout import TIMELESS, SequencePlan
from hafm_lightning.tokens import SEMANTIC_RATE_HZ, TICK_RATE_HZ

RelativePositionKind = Literal["time", "index"]
PrefixMask = Literal["causal", "bidirectional"]

BUCKETS = 32
"""Buckets of each table (T5's default)."""
MAX_DISTANCE_STEPS = 128
"""Step distance from which on all keys share the last bucket (T5's default)."""
MAX_DISTANCE_TICKS = MAX_DISTANCE_STEPS * TICK_RATE_HZ // SEMANTIC_RATE_HZ
"""The same distance as a time, for semantic frames: 2.56 s in ticks."""


def t5_buckets(distance: Tensor, *, bidirectional: bool, buckets: int = BUCKETS, max_distance: int) -> Tensor:
    """Bucket ``0 .. buckets - 1`` of each ``distance`` = query position - key position, int64 of the same shape.

    One-directional buckets put every future key in bucket 0; of bidirectional ones the second half is the future's.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance < 0).long() * buckets
        distance = distance.abs()
    edges = torch.tensor(_bucket_edges(buckets, max_distance), device=distance.device)
    return offset + torch.bucketize(distance, edges, right=True)


@lru_cache(maxsize=16)
def _bucket_edges(buckets: int, max_distance: int) -> tuple[int, ...]:
    """Smallest distance of each bucket but the first; whole numbers, since MPS has no float64 to take logarithms in."""
    exact = buckets // 2
    distance = torch.arange(max(exact, max_distance) + 1)
    ratio = distance.clamp(min=1).double() / exact
    far = exact + (ratio.log() / math.log(max_distance / exact) * (buckets - exact)).long()
    bucket = torch.where(distance < exact, distance, far.clamp(max=buckets - 1))
    return tuple(torch.searchsorted(bucket, torch.arange(1, buckets)).tolist())


def visible(query: Tensor, key: Tensor, causal: bool, both_ways: int) -> Tensor:
    """Whether step ``query`` may see step ``key`` (they broadcast): all, or if ``causal`` its past alone.

    The first ``both_ways`` steps see each other in both directions all the same.
    """
    if not causal:
        return (query >= 0) & (key >= 0)
    past = key <= query
    return past | ((query < both_ways) & (key < both_ways)) if both_ways else past


@dataclass(frozen=True)
class StepPositions:
    """What the bias needs to know of each step, on the model's device; each ``[S]``.

    Attributes:
        segment: Segment of the step.
        ticks: Time of the step, or :data:`~hafm_lightning.modeling.layout.TIMELESS`.
        condition_steps: Steps before the target's first.
    """

    segment: Tensor
    ticks: Tensor
    condition_steps: int

    @classmethod
    def of(cls, plan: SequencePlan, device: torch.device | str, steps: int | None = None) -> StepPositions:
        """The positions of a plan's first ``steps`` steps (default: all) on ``device``."""
        segment, ticks = plan.segment[:steps].to(device), plan.ticks[:steps].to(device)
        return cls(segment, ticks, min(plan.condition_steps, len(segment)))

    @property
    def steps(self) -> int:
        """Number of steps, ``S``."""
        return len(self.segment)


class RelativePosition(nn.Module):
    """The learned bias tables and the map from pairs of steps to their rows.

    Args:
        heads: ``H``.
        kind: ``time`` or ``index``.
        causal: Whether a query sees only its own past. Without, the table within a segment is bidirectional.
        segments: Number of segments in the sequence; with one, ``time`` needs no second table.
        prefix_mask: ``bidirectional`` lets condition steps see each other in both directions.
    """

    def __init__(
        self,
        heads: int,
        kind: RelativePositionKind = "time",
        causal: bool = True,
        segments: int = 1,
        prefix_mask: PrefixMask = "causal",
    ) -> None:
        super().__init__()
        if kind not in ("time", "index"):
            raise ValueError(f"unknown relative_position {kind!r}; choose 'time' or 'index'")
        if prefix_mask not in ("causal", "bidirectional"):
            raise ValueError(f"unknown prefix_mask {prefix_mask!r}; choose 'causal' or 'bidirectional'")
        self.kind = kind
        self.causal = causal
        self.prefix_mask = prefix_mask
        self.across_segments = kind == "time" and segments > 1
        self.within = nn.Parameter(torch.zeros(BUCKETS, heads))
        self.across = nn.Parameter(torch.zeros(BUCKETS, heads)) if self.across_segments else None

    @property
    def masked_row(self) -> int:
        """Row of :meth:`table` that forbids a pair."""
        return 2 * BUCKETS if self.across_segments else BUCKETS

    def table(self) -> Tensor:
        """All rows ``[R + 1, H]`` in float32: within, across, and a last row of ``-inf``."""
        tables = [self.within] if self.across is None else [self.within, self.across]
        return torch.cat([*tables, torch.full_like(self.within[:1], -math.inf)]).float()

    def rows(self, positions: StepPositions, queries: Tensor, keys: Tensor) -> Tensor:
        """Row of :meth:`table` for each pair of steps: ``queries [Q]``, ``keys [N]`` -> int64 ``[Q, N]``."""
        query, key = queries[:, None], keys[None, :]
        distance = query - key
        rows = t5_buckets(distance, bidirectional=not self.causal, max_distance=MAX_DISTANCE_STEPS)
        if self.across_segments:
            query_ticks, key_ticks = positions.ticks[query], positions.ticks[key]
            timed = (query_ticks != TIMELESS) & (key_ticks != TIMELESS)
            apart = (positions.segment[query] != positions.segment[key]) & timed
            by_time = t5_buckets(query_ticks - key_ticks, bidirectional=True, max_distance=MAX_DISTANCE_TICKS)
            rows = torch.where(apart, BUCKETS + by_time, rows)
        seen = visible(query, key, self.causal, self.steps_seen_both_ways(positions))
        return rows.masked_fill(~seen, self.masked_row)

    def steps_seen_both_ways(self, positions: StepPositions) -> int:
        """How many of the first steps see each other in both directions."""
        return positions.condition_steps if self.prefix_mask == "bidirectional" else 0

    def bias(self, positions: StepPositions, queries: Tensor, keys: Tensor) -> Tensor:
        """Mask and bias together, ``[H, Q, N]`` in float32; ``-inf`` where a pair is forbidden."""
        rows = self.rows(positions, queries, keys)
        return self.table().t().index_select(1, rows.flatten()).view(-1, *rows.shape)

    def sequence_bias(self, positions: StepPositions) -> SequenceBias:
        """Mask and bias of a whole sequence, for attention over it."""
        steps = torch.arange(positions.steps, device=positions.segment.device)
        return PairBias.of(self.rows(positions, steps, steps), self.masked_row)
