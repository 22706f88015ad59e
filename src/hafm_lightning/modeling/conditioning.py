"""Token embeddings, and conditions laid on the target's clock.

Choices:

* One embedding table for each codebook of each stream (the paper's parameter counts need it).
* A dropped condition is a *token*: every id of the clip becomes :data:`~hafm_lightning.tokens.NULL`, so the length and
  all positions stay as they are. The unconditional pass of guidance uses the same ids.
* Negative ids other than the special one of a stream fail in the look-up.
* ``aligned`` conditioning: the condition frame that sounds at each target frame is added to the target's input, after
  a depth-wise convolution that mixes a stated look-behind and look-ahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.tokens import EMPTY, NULL, TokenStream, nearest_frames

EMBEDDING_STD = 0.02


class StreamEmbedding(nn.Module):
    """Vectors for the tokens of one stream, with one table a codebook and one learned vector for a special id.

    ``special`` is the negative id that this stream may hold: ``NULL`` for conditions, ``EMPTY`` for targets.
    """

    def __init__(self, stream: TokenStream, width: int, special: int) -> None:
        super().__init__()
        if special not in (NULL, EMPTY):
            raise ValueError(f"special id must be NULL or EMPTY, got {special}")
        self.stream = stream
        self.special_id = special
        self.weight = nn.Parameter(torch.randn(stream.codebooks, stream.vocabulary, width) * EMBEDDING_STD)
        self.special = nn.Parameter(torch.randn(width) * EMBEDDING_STD)

    def forward(self, ids: Tensor, codebooks: slice = slice(None)) -> Tensor:
        """Ids ``[B, K', ...]`` of the chosen codebooks -> vectors ``[B, K', ..., D]``."""
        tables = self.weight[codebooks]
        absent = ids == self.special_id
        first = torch.arange(len(tables), device=ids.device).view(-1, *[1] * (ids.dim() - 2)) * self.stream.vocabulary
        # an id that is out of range must fail, not read the next codebook's table
        in_range = (ids >= 0) & (ids < self.stream.vocabulary)
        row = torch.where(in_range, ids + first, torch.where(absent, 0, -1))
        vectors = F.embedding(row, tables.flatten(0, 1))
        return torch.where(absent[..., None], self.special.to(vectors.dtype), vectors)


def drop_conditions(
    streams: Mapping[str, Tensor], conditions: tuple[TokenStream, ...], drop: Tensor
) -> dict[str, Tensor]:
    """The streams with all conditions of the clips marked in ``drop [B]`` (bool) replaced by null tokens."""
    marked = drop.view(-1, 1, 1)
    return {**streams, **{stream.name: torch.where(marked, NULL, streams[stream.name]) for stream in conditions}}


def drop_at_random(
    streams: Mapping[str, Tensor], conditions: tuple[TokenStream, ...], probability: float
) -> dict[str, Tensor]:
    """Guidance dropout: all conditions of a clip become null tokens, each clip with ``probability``.

    A control (a condition without a frame rate: the style) is dropped by itself too, with the same probability, so that
    the network learns to write without a style.
    """
    some = next(iter(streams.values()))

    def drawn() -> Tensor:
        return torch.rand(len(some), device=some.device, dtype=torch.float32) < probability

    dropped = drop_conditions(streams, conditions, drawn())
    for control in conditions:
        if not control.rate_hz:
            dropped = drop_conditions(dropped, (control,), drawn())
    return dropped


def null_conditions(streams: Mapping[str, Tensor], conditions: tuple[TokenStream, ...]) -> dict[str, Tensor]:
    """The streams with the conditions of every clip replaced by null tokens."""
    some = next(iter(streams.values()))
    return drop_conditions(streams, conditions, torch.ones(some.shape[0], dtype=torch.bool, device=some.device))


def whole_frames(duration_s: float, stream: TokenStream) -> int:
    """Frames of ``stream`` that fit into ``duration_s`` seconds: what is stated is never exceeded."""
    return math.floor(duration_s * stream.rate_hz + 1e-6)


class AlignedConditions(nn.Module):
    """Conditions on the target's frame clock, ``[B, T, D]``, to be added to the target's steps.

    Args:
        layout: The sequence layout; its conditions are embedded elsewhere and passed in.
        width: ``D``.
        look_ahead_s: How far ahead a frame reads its conditions, in seconds; rounded down to whole frames.
        look_behind_s: How far into the past the convolution reaches, likewise (the causal attention remembers further).
    """

    def __init__(
        self, layout: SequenceLayout, width: int, look_ahead_s: float = 0.3, look_behind_s: float = 0.3
    ) -> None:
        super().__init__()
        if look_ahead_s < 0 or look_behind_s < 0:
            raise ValueError(f"look-ahead and look-behind must be 0 or more, got {look_ahead_s} and {look_behind_s} s")
        self.layout = layout
        self.ahead = whole_frames(look_ahead_s, layout.target)
        self.behind = whole_frames(look_behind_s, layout.target)
        self.mix = nn.Conv1d(width, width, self.behind + 1 + self.ahead, groups=width)
        # torch's default bias is several times as large as a token's vector, which drowns in it until it is unlearnt
        nn.init.zeros_(cast(Tensor, self.mix.bias))

    def forward(self, embedded: list[Tensor], frames: int) -> Tensor:
        """Condition vectors ``[B, T_c, D]`` in the layout's order -> ``[B, T, D]`` for ``frames`` target frames."""
        clock, whole_clip = [], []
        for stream, vectors in zip(self.layout.conditions, embedded, strict=True):
            if not stream.rate_hz:
                whole_clip.append(vectors[:, :1])
                continue
            index = nearest_frames(stream, self.layout.target, frames).to(vectors.device)
            clock.append(vectors[:, index])
        total = torch.stack(clock).sum(0) if clock else embedded[0].new_zeros(1, frames, embedded[0].shape[-1])
        if clock:
            padded = F.pad(total.transpose(1, 2), (self.behind, self.ahead))
            total = total + self.mix(padded).transpose(1, 2)
        for vectors in whole_clip:
            total = total + vectors
        return total
