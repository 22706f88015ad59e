"""Teacher-forced scores of clips under true, null and exchanged conditions.

A stage predicts much from its target's own past, so its loss alone does not show whether it uses the vocal. The loss is
computed again with null conditions and with those of another song. The other song is the next one in alphabetical
order, at the same position in its list of clips: a fixed pairing, whatever the batch size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hafm_lightning.modeling import token_scores
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import TOP, score
from hafm_lightning.shards import open_shards
from hafm_lightning.tokens import (
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_CODES,
    INSTRUMENTAL_FINE,
    TokenBatch,
    TokenStream,
    split_codes,
)

CLIPS_AT_ONCE = 8

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClipTokenScores:
    """Scores of each clip and codebook, float64 ``[n, K]``: cross-entropy (nats), top-1 and top-10 accuracy."""

    cross_entropy: Matrix
    accuracy: Matrix
    accuracy_top10: Matrix

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Mean over codebooks, ``[n]``."""
        return np.asarray(self.cross_entropy.mean(axis=1))


@torch.inference_mode()
def score_clips(model: TokenModel, clips: TokenBatch, streams: Mapping[str, Tensor] | None = None) -> ClipTokenScores:
    """Scores of each clip; ``streams`` replaces the clips' own, for example by shifted ones."""
    given = TokenBatch(dict(clips.streams if streams is None else streams), clips.clip_ids)
    parts: list[list[Matrix]] = [[], [], []]
    for start in range(0, len(given), CLIPS_AT_ONCE):
        batch = given.rows(range(start, min(start + CLIPS_AT_ONCE, len(given)))).to(model.device)
        scores = score(model, batch)
        for part, values in zip(parts, (scores.cross_entropy, scores.rank == 0, scores.rank < TOP), strict=True):
            part.append(values.double().mean(-1).cpu().numpy())
    return ClipTokenScores(*(np.concatenate(part) for part in parts))


def vocal_conditions(model: TokenModel) -> tuple[TokenStream, ...]:
    """The stage's conditions that are derived from the vocal; empty for the fine stage."""
    return token_scores.vocal_conditions(model.layout.conditions)


def vocal_streams(model: TokenModel) -> tuple[TokenStream, ...]:
    """The conditions that are derived from the vocal; all conditions for a stage without such ones."""
    return vocal_conditions(model) or tuple(s for s in model.layout.conditions if s.rate_hz)


def stored_clips(root: str, split: str, most: int = 0) -> TokenBatch:
    """The first ``most`` clips (0: all) of a split of prepared shards; RequestError if there are no such shards."""
    reader = open_shards(root, split)
    count = min(most or len(reader), len(reader))
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for index in range(count):
        for name, ids in reader[index].items():
            parts[name].append(torch.from_numpy(ids.astype(np.int64)))
    streams = {name: torch.stack(ids) for name, ids in parts.items()}
    coarse, fine = split_codes(streams.pop(INSTRUMENTAL_CODES))
    streams |= {INSTRUMENTAL_COARSE.name: coarse, INSTRUMENTAL_FINE.name: fine}
    return TokenBatch(streams, reader.manifest.clip_ids()[:count])
