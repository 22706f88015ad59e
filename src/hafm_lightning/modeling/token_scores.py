"""Token scores: cross-entropy and rank of the true token, and their means in all and for each codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.tokens import TokenBatch

TOP = 10
"""The true token counts for ``accuracy_top10`` when fewer than this many tokens rank before it."""


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats: logits ``[..., V]``, true ids ``[...]`` -> float32 ``[...]``."""
    rows = logits.reshape(-1, logits.shape[-1]).float()  # vocabulary last and contiguous: the fast kernel
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


def score_names(codebooks: int) -> list[str]:
    """The names that :func:`summarise` gives for a target of so many codebooks."""
    measures = ("loss", "accuracy", "accuracy_top10")
    by_codebook = range(codebooks) if codebooks > 1 else ()
    return [*measures, *(f"{measure}_q{k}" for measure in measures for k in by_codebook)]


class StepMeans:
    """Means of the scores over the clips of an optimizer step, which may take several batches on several processes.

    Args:
        codebooks: Codebooks of the target.
    """

    def __init__(self, codebooks: int) -> None:
        self.names = score_names(codebooks)
        self._parts: list[tuple[Mapping[str, Tensor], int]] = []

    def add(self, values: Mapping[str, Tensor], clips: int) -> None:
        """Note the means over a batch of ``clips`` clips; names may be missing."""
        self._parts.append((values, clips))

    def take(self, over_processes: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """The means over the clips noted since the last call.

        Args:
            over_processes: Sums a tensor over all processes, each of which calls this. Then every name gets a value:
                NaN where no clip has one (``nonautoregressive`` batches score one codebook).
        """
        parts, self._parts = self._parts, []
        if over_processes is None and len(parts) == 1:
            return dict(parts[0][0])
        device = next(iter(parts[0][0].values())).device
        sums = torch.zeros(len(self.names), 2, dtype=torch.float64, device=device)  # of scores, of clips
        for values, clips in parts:
            for row, name in enumerate(self.names):
                if name in values:
                    sums[row, 0] += values[name].double() * clips
                    sums[row, 1] += clips
        if over_processes is not None:
            sums = over_processes(sums)
            return {name: total / count for name, (total, count) in zip(self.names, sums, strict=True)}
        return {name: sums[row, 0] / sums[row, 1] for row, name in enumerate(self.names) if name in parts[0][0]}


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
