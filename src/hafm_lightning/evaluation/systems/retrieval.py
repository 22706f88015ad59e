"""Retrieval: the training accompaniment whose vocal is nearest to the one that is sung, by its semantic tokens.

A control between random pairing and a model: real playing to a similar voice. Two stretches of vocal are
compared frame by frame: their distance is the mean squared distance of the tokens' centroid vectors, so that two tokens
that sound alike count as near. All training clips are searched, at every offset on a grid. The nearest one is decoded
from the shard's own tokens, since the training sound need not be at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.evaluation.segments import MusicClip, tokenize_clips
from hafm_lightning.evaluation.systems.base import Outcome, System, fitted, silence_for
from hafm_lightning.shards import ShardReader
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import FRAME_GRID_S, INSTRUMENTAL_CODES, VOCAL_SEMANTIC

OFFSET_S = 0.4
"""Grid of the offsets at which a training clip may be entered, in seconds."""
BLOCK_CLIPS = 64
"""Training clips compared at once."""


class Retrieval(System):
    """Nearest training accompaniment, from training shards and the tokenizers that made them."""

    def __init__(self, reader: ShardReader, tokenizers: Tokenizers) -> None:
        self.reader, self.tokenizers = reader, tokenizers
        centroids = tokenizers.semantic.centroids.double().cpu()
        self.distances = torch.cdist(centroids, centroids).square().float().numpy()  # [V, V]
        shards = [shard.sha256 for shard in reader.manifest.shards]
        super().__init__("retrieval", OFFSET_S, shards, tokenizers.identities())

    def play(self, clips: Sequence[MusicClip]) -> list[Outcome]:
        """Decoded accompaniments of the nearest vocals."""
        ids = tokenize_clips(clips, self.tokenizers)[VOCAL_SEMANTIC.name][:, 0].numpy()
        acoustic = self.tokenizers.acoustic
        outcomes = []
        for clip, tokens in zip(clips, ids, strict=True):
            nearest = self.nearest(tokens)
            if nearest is None:
                outcomes.append(silence_for(clip, "the training clips are shorter than this one"))
                continue
            index, start_s = nearest
            first = round(start_s * acoustic.identity.rate_hz)
            frames = round(clip.segment.duration_s * acoustic.identity.rate_hz)
            codes = self.reader[index][INSTRUMENTAL_CODES][:, first : first + frames].astype(np.int64)
            samples = acoustic.decode(torch.from_numpy(codes)[None])[0].float().cpu().numpy()
            outcomes.append(fitted(clip, samples, note=f"{self.reader.clip_ids[index]} + {start_s:.2f} s"))
        return outcomes

    def nearest(self, tokens: npt.NDArray[np.int64]) -> tuple[int, float] | None:
        """Index and offset (seconds) of the training vocal nearest to ``tokens [T]``; None if all are shorter."""
        table = self.distances[tokens]  # [T, V]
        frames = np.arange(len(tokens))
        best: tuple[float, int, float] | None = None
        step = round(OFFSET_S / FRAME_GRID_S) * round(FRAME_GRID_S * VOCAL_SEMANTIC.rate_hz)
        for start in range(0, len(self.reader), BLOCK_CLIPS):
            stop = min(start + BLOCK_CLIPS, len(self.reader))
            block = np.stack([self.reader[index][VOCAL_SEMANTIC.name][0] for index in range(start, stop)])  # [n, T']
            for offset in range(0, block.shape[1] - len(tokens) + 1, step):
                costs = table[frames, block[:, offset : offset + len(tokens)]].mean(axis=1)
                row = int(costs.argmin())
                if best is None or costs[row] < best[0]:
                    best = (float(costs[row]), start + row, offset / VOCAL_SEMANTIC.rate_hz)
        return None if best is None else best[1:]
