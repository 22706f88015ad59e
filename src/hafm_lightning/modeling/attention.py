"""How queries meet keys: the mixers that the layers are given, and attention over whole sequences.

Layers know nothing of attention but their :class:`Mixer`: they train on whole sequences (:class:`WholeSequence`), and
decode from a cache (:mod:`~hafm_lightning.modeling.cache`).

Whole sequences add a learned bias to the scores. A bias that needs a gradient rules out the fused kernels of
``scaled_dot_product_attention``: autograd would keep ``layers * H * S^2`` probabilities. So queries are taken in
blocks, each with the keys that it can see, and the backward pass computes a block's scores again.

Shapes: queries, keys and values ``[B, H, S, d]``. Scores are scaled by ``1 / sqrt(d)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

QUERIES_AT_ONCE = 256
"""Queries in a block: ``B * H * 256 * S`` scores exist at once."""


class Mixer(Protocol):
    """How the queries of a layer meet keys."""

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """New steps of layer ``layer``, each ``[B, H, Q, d]`` -> mixed values ``[B, H, Q, d]``."""


class SequenceBias(Protocol):
    """Mask and bias of every pair of steps of a sequence: made once for each length, used by all layers."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """Attention over the sequence, ``[B, H, S, d]`` -> the same; ``table`` is ``RelativePosition.table()``."""


@dataclass(frozen=True)
class WholeSequence:
    """The mixer in which a sequence attends to itself; ``table`` is ``RelativePosition.table()``."""

    bias: SequenceBias
    table: Tensor

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As :class:`Mixer`; all layers share the bias."""
        return self.bias.attend(queries, keys, values, self.table)


@dataclass(frozen=True)
class PairBias:
    """Mask and bias as a row of the bias table for each pair of steps, in PyTorch's operations for any device.

    Attributes:
        rows: Row of the table for each pair, int32 ``[S, S]``.
        blocks: First query, query after the last one, and number of keys of each block of queries.
    """

    rows: Tensor
    blocks: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, rows: Tensor, masked_row: int) -> PairBias:
        """From a row for each pair, ``[S, S]``, of which ``masked_row`` forbids the pair."""
        steps, blocks = len(rows), []
        for start in range(0, steps, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, steps)
            seen = (rows[start:stop] != masked_row).any(0).nonzero()
            blocks.append((start, stop, int(seen.max()) + 1))
        return cls(rows.int(), tuple(blocks))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend`."""
        mixed = []
        for start, stop, seen in self.blocks:
            part = (queries[:, :, start:stop], keys[:, :, :seen], values[:, :, :seen], table)
            rows = self.rows[start:stop, :seen]
            if torch.is_grad_enabled():
                mixed.append(checkpoint(_attend, *part, rows, use_reentrant=False, preserve_rng_state=False))
            else:
                mixed.append(_attend(*part, rows))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Attention with one additive mask: ``table [R + 1, H]``, and its row for each pair, ``rows [Q, N]``."""
    bias = F.embedding(rows, table).permute(2, 0, 1)[None]  # [1, H, Q, N]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
