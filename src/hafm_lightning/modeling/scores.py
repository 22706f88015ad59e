"""Token scores: cross-entropy and rank of the true token, and their means in all and for each codebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.modeling.rowwise import cross_entropy, rowwise
from hafm_lightning.tokens import TokenBatch

TOP = 10
"""The true token counts for ``accuracy_top10`` when fewer than this many tokens rank before it."""


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats: logits ``[..., V]``, true ids ``[...]`` -> float32 ``[...]``."""
    rows = logits.reshape(-1, logits.shape[-1]).float()  # vocabulary last and contiguous: the fast kernel
    if rowwise(rows):
        return cross_entropy(rows, targets.flatten()).view(targets.shape)
    return F.cross_entropy(rows, targets.flatten(), reduction="none").view(targets.shape)


@dataclass(frozen=True)
class TokenScores:
    """Per-token scores of a batch, each float ``[B, K, T]``: cross-entropy in nats, and ranks of the true tokens."""

    cross_entropy: Tensor
    rank: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> TokenScores:
        """From logits ``[B, K, T, V]`` and true ids ``[B, K, T]``."""
        cross_entropy = token_cross_entropy(logits, targets)
        true = targets[..., None]
        true_logit = logits.gather(-1, true)
        # equal logits, common in half precision, rank by id as argmax does: counted as hits they would flatter accuracy
        earlier = torch.arange(logits.shape[-1], device=logits.device) < true
        ahead = (logits > true_logit) | ((logits == true_logit) & earlier)
        return cls(cross_entropy, ahead.sum(-1))


def summarise(scores: TokenScores, first_codebook: int, total: int) -> dict[str, Tensor]:
    """Means over a batch: in all, and for each codebook where the target has several."""
    measures: dict[str, Callable[[slice], Tensor]] = {
        "loss": lambda k: scores.cross_entropy[:, k].mean(),
        "accuracy": lambda k: (scores.rank[:, k] == 0).double().mean(),
        "accuracy_top10": lambda k: (scores.rank[:, k] < TOP).double().mean(),
    }
    values = {name: measure(slice(None)).detach() for name, measure in measures.items()}
    if total > 1:
        for k in range(scores.rank.shape[1]):
            for name, measure in measures.items():
                values[f"{name}_q{first_codebook + k}"] = measure(slice(k, k + 1)).detach()
    return values


def other_clips(batch: TokenBatch, conditions: Sequence[str]) -> dict[str, Tensor] | None:
    """The streams with each clip's conditions taken from another song of the batch; None where there is no other."""
    songs = [clip.rsplit("@", 1)[0] for clip in batch.clip_ids]
    if len(set(songs)) < 2:
        return None
    count = len(songs)
    source = []
    for index, song in enumerate(songs):
        other = next((index + shift) % count for shift in range(1, count) if songs[(index + shift) % count] != song)
        source.append(other)
    streams = dict(batch.streams)
    for name in conditions:
        streams[name] = streams[name][source]
    return streams
