"""Token scores: how well a network predicts the true tokens with true, null or another song's conditions.

The clip of another song is the one with the same number in the next song, songs in alphabetical order. The pairing is
made over all clips of a set (:func:`other_song_clips`) before they are cut into batches, so that no score depends on
batch size or number of processes. :class:`PairedBatch` carries the other clips along.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.modeling.conditioning import null_conditions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.tokens import VOCAL_ACOUSTIC, VOCAL_SEMANTIC, TokenBatch, TokenStream

TOP = 10
"""The true token counts for ``accuracy_top10`` when fewer than this many tokens rank before it."""


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats: logits ``[..., V]``, true ids ``[...]`` -> float32 ``[...]``."""
    rows = logits.reshape(-1, logits.shape[-1])  # vocabulary last and contiguous: the fast kernel
    # CUDA's kernel reads half precision and writes float32; autocast would make a float32 copy of the logits first
    with torch.autocast("cuda", enabled=False) if rows.is_cuda else nullcontext():
        logarithms = F.log_softmax(rows, dim=-1, dtype=torch.float32)
        return F.nll_loss(logarithms, targets.flatten(), reduction="none").view(targets.shape)


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

    @property
    def clip_losses(self) -> Tensor:
        """Mean cross-entropy of each clip in nats, ``[B]``."""
        return self.cross_entropy.mean((1, 2))


def score(model: TokenModel, batch: TokenBatch, streams: Mapping[str, Tensor] | None = None) -> TokenScores:
    """Scores of the model's target in ``batch``, predicted with the true earlier tokens (teacher forcing).

    The model reads ``streams``, with the true target among them, in place of the batch's own.
    """
    return TokenScores.of(model(batch.streams if streams is None else streams), batch[model.layout.target.name])


def without_conditions(batch: TokenBatch, conditions: Sequence[TokenStream]) -> dict[str, Tensor]:
    """The batch's streams with null tokens as ``conditions``."""
    return null_conditions(batch.streams, tuple(conditions))


def other_song(batch: TokenBatch, conditions: Sequence[TokenStream]) -> dict[str, Tensor]:
    """The batch's streams with ``conditions`` of another song: of a :class:`PairedBatch`, else of the batch itself.

    Raises:
        ValueError: All clips are of one song.
    """
    if not isinstance(batch, PairedBatch):
        batch = paired(batch)
    return {**batch.streams, **{stream.name: batch.other[stream.name] for stream in conditions}}


def vocal_conditions(conditions: Sequence[TokenStream]) -> tuple[TokenStream, ...]:
    """Those of a stage's conditions that are derived from the vocal; none for the fine stage."""
    return tuple(stream for stream in conditions if stream in (VOCAL_SEMANTIC, VOCAL_ACOUSTIC))


def has_other_song(batch: TokenBatch) -> bool:
    """Whether :func:`other_song` has a clip of another song for each clip."""
    return isinstance(batch, PairedBatch) or len({song_of(clip) for clip in batch.clip_ids}) > 1


@dataclass
class PairedBatch(TokenBatch):
    """Clips, each with a clip of another song, whose streams are ``other``."""

    other: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairedBatch:
        """Both clips of each pair on another device."""
        return self._both(lambda batch: batch.to(device, non_blocking))

    def pin_memory(self) -> PairedBatch:
        """Both clips of each pair in page-locked memory (called by DataLoader)."""
        return self._both(TokenBatch.pin_memory)

    def rows(self, index: Sequence[int]) -> PairedBatch:
        """The pairs at ``index``, in that order."""
        return self._both(lambda batch: batch.rows(index))

    def _both(self, change: Callable[[TokenBatch], TokenBatch]) -> PairedBatch:
        mine, other = (change(TokenBatch(streams, self.clip_ids)) for streams in (self.streams, self.other))
        return PairedBatch(mine.streams, mine.clip_ids, other.streams)


def paired(clips: TokenBatch) -> PairedBatch:
    """A whole set of clips with the clips that :func:`other_song_clips` names; ValueError for a single song."""
    return PairedBatch(clips.streams, clips.clip_ids, clips.rows(other_song_clips(clips.clip_ids)).streams)


def other_song_clips(clip_ids: Sequence[str]) -> list[int]:
    """For each clip of a set (``song@start_s``), the index of one of the next song, after the last of the first.

    Raises:
        ValueError: All clips are of one song.
    """
    clips_of: dict[str, list[int]] = defaultdict(list)
    number_in_song = []
    for index, clip in enumerate(clip_ids):
        number_in_song.append(len(clips_of[song_of(clip)]))
        clips_of[song_of(clip)].append(index)
    songs = sorted(clips_of)
    if len(songs) < 2:
        raise ValueError(f"another song's conditions need clips of at least 2 songs, got {songs}")
    following = dict(zip(songs, [*songs[1:], songs[0]], strict=True))
    others = [clips_of[following[song_of(clip)]] for clip in clip_ids]
    return [other[number % len(other)] for other, number in zip(others, number_in_song, strict=True)]


def song_of(clip_id: str) -> str:
    """The song in ``song@start_s``."""
    return clip_id.rsplit("@", 1)[0]


def summarise(scores: TokenScores, first_codebook: int, total: int) -> dict[str, Tensor]:
    """Means over a batch: over all tokens, and for each codebook where the target has several."""
    measures: dict[str, Callable[[slice], Tensor]] = {
        "loss": lambda k: scores.cross_entropy[:, k].mean(),
        "accuracy": lambda k: (scores.rank[:, k] == 0).double().mean(),
        "accuracy_top10": lambda k: (scores.rank[:, k] < TOP).double().mean(),
    }
    chosen = {"": slice(None)}
    if total > 1:
        chosen |= {f"_q{first_codebook + k}": slice(k, k + 1) for k in range(scores.rank.shape[1])}
    return {name + suffix: measures[name](k).detach() for suffix, k in chosen.items() for name in measures}


def score_names(codebooks: int) -> list[str]:
    """The names that :func:`summarise` gives for a target of ``codebooks`` codebooks."""
    measures = ("loss", "accuracy", "accuracy_top10")
    by_codebook = range(codebooks) if codebooks > 1 else ()
    return [*measures, *(f"{measure}_q{k}" for measure in measures for k in by_codebook)]
