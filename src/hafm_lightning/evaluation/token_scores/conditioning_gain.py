"""How much a stage listens: its loss on held-out clips with true, null and another song's conditions.

Each clip is scored by itself, so that means and intervals can be taken over songs. The other song is the next one in
alphabetical order, at the same place in its list of clips: a fixed pairing, whatever the batch size.

Source: ``docs/evaluation.md``, tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hafm_lightning.evaluation.intervals import Interval, bootstrap_interval
from hafm_lightning.modeling.token_scores import other_song, paired, score, song_of, without_conditions
from hafm_lightning.stages import Stage
from hafm_lightning.tokens import TokenBatch

CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class ClipLosses:
    """Cross-entropy of each clip in nats, three lists in the order of ``clip_ids``.

    Attributes:
        clip_ids: ``song@start_s``.
        true: With the clip's own conditions.
        null: With null conditions.
        other: With those of another song.
    """

    clip_ids: list[str]
    true: list[float]
    null: list[float]
    other: list[float]

    @property
    def songs(self) -> list[str]:
        """Song of each clip."""
        return [song_of(clip) for clip in self.clip_ids]

    def summary(self, seed: int = 0) -> dict[str, Interval]:
        """``loss``, ``conditioning_gain`` (null - true) and ``other_clip_gap`` (other - true), intervals over songs."""
        gain = [null - true for null, true in zip(self.null, self.true, strict=True)]
        gap = [other - true for other, true in zip(self.other, self.true, strict=True)]
        values = {"loss": self.true, "conditioning_gain": gain, "other_clip_gap": gap}
        return {name: bootstrap_interval(numbers, seed, groups=self.songs) for name, numbers in values.items()}


@torch.no_grad()
def clip_losses(stage: Stage, clips: TokenBatch, wanted: Sequence[int] | None = None) -> ClipLosses:
    """Score clips with true, null and another song's conditions.

    Args:
        stage: In eval mode.
        clips: Clips of one duration, of at least two songs; all of them serve as other songs.
        wanted: Indices of the clips to score; default: all.
    """
    conditions = stage.model.layout.conditions
    pairs, indices = paired(clips), list(range(len(clips)) if wanted is None else wanted)
    losses: dict[str, list[float]] = {"true": [], "null": [], "other": []}
    for start in range(0, len(indices), CLIPS_AT_ONCE):
        batch = pairs.rows(indices[start : start + CLIPS_AT_ONCE]).to(stage.device)
        for name, streams in (
            ("true", batch.streams),
            ("null", without_conditions(batch, conditions)),
            ("other", other_song(batch, conditions)),
        ):
            losses[name] += score(stage.model, batch, streams).clip_losses.double().tolist()
    return ClipLosses([clips.clip_ids[i] for i in indices], losses["true"], losses["null"], losses["other"])


def join(parts: Sequence[ClipLosses]) -> ClipLosses:
    """Scores of several parts, one after the other."""
    return ClipLosses(
        *([value for part in parts for value in getattr(part, name)] for name in ("clip_ids", "true", "null", "other"))
    )
