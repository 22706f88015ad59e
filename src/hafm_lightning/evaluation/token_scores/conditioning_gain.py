"""How much a stage listens: its loss on held-out clips with true, null and another song's conditions.

Each clip is scored by itself, so that means and intervals can be taken over songs. The other song is the next one in
alphabetical order, at the same place in its list of clips: a fixed pairing, whatever the batch size.

Source: ``docs/evaluation.md``, tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hafm_lightning.evaluation.intervals import Interval, bootstrap_interval
from hafm_lightning.modeling.conditioning import null_conditions
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


def song_of(clip_id: str) -> str:
    """The song in ``song@start_s``."""
    return clip_id.rsplit("@", 1)[0]


def other_song_clips(clip_ids: list[str]) -> list[int]:
    """For each clip, the index of a clip of the next song.

    Raises:
        ValueError: All clips are of one song.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clip_ids):
        places[song_of(clip)].append(index)
    songs = sorted(places)
    if len(songs) < 2:
        raise ValueError(f"another song's conditions need clips of at least 2 songs, got {songs}")
    following = dict(zip(songs, [*songs[1:], songs[0]], strict=True))
    chosen = []
    for index, clip in enumerate(clip_ids):
        mine, theirs = places[song_of(clip)], places[following[song_of(clip)]]
        chosen.append(theirs[mine.index(index) % len(theirs)])
    return chosen


@torch.no_grad()
def clip_losses(stage: Stage, clips: TokenBatch, wanted: Sequence[int] | None = None) -> ClipLosses:
    """Score clips with true, null and another song's conditions.

    Args:
        stage: In eval mode.
        clips: Clips of one duration, of at least two songs; all of them serve as other songs.
        wanted: Indices of the clips to score; default: all.
    """
    conditions = stage.model.layout.conditions
    others = clips.rows(other_song_clips(clips.clip_ids))
    indices = list(range(len(clips)) if wanted is None else wanted)
    losses: dict[str, list[float]] = {"true": [], "null": [], "other": []}
    for start in range(0, len(indices), CLIPS_AT_ONCE):
        rows = indices[start : start + CLIPS_AT_ONCE]
        batch, other = clips.rows(rows).to(stage.device), others.rows(rows).to(stage.device)
        swapped = batch.streams | {stream.name: other[stream.name] for stream in conditions}
        for name, streams in (
            ("true", batch.streams),
            ("null", null_conditions(batch.streams, conditions)),
            ("other", swapped),
        ):
            losses[name] += stage.clip_losses(batch, streams).double().tolist()
    return ClipLosses([clips.clip_ids[i] for i in indices], losses["true"], losses["null"], losses["other"])


def join(parts: Sequence[ClipLosses]) -> ClipLosses:
    """Scores of several parts, one after the other."""
    return ClipLosses(
        *([value for part in parts for value in getattr(part, name)] for name in ("clip_ids", "true", "null", "other"))
    )
