"""Music of one stage that is still in training, and its scores.

One stage makes no sound by itself. It is evaluated with true tokens for the stages before it; a coarse stage is decoded
from 4 codebooks, a fine one from all 8. A semantic stage is decoded through a coarse and a fine checkpoint where they
are given; without them there is no sound, and :func:`centroid_rows` gives the Frechet distance between the centroid
vectors of generated and true tokens, which is a distance of token statistics and not a FAD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hafm_lightning.audio import resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.stages import Stage
from hafm_lightning.tokenizers.base import AcousticTokenizer
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers
from hafm_lightning.tokens import (
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    INSTRUMENTAL_SEMANTIC,
    TokenBatch,
    join_codes,
)

Waveforms = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class LaterStages:
    """The stages that turn semantic tokens into sound; ``fine`` may be absent (4 codebooks then)."""

    coarse: TokenModel
    fine: TokenModel | None = None


def check_later_stages(stage: Stage, later: Mapping[str, Stage]) -> None:
    """Raise RequestError unless ``later`` (``coarse``, ``fine``) continues ``stage`` with the same tokenizers."""
    for name, other in later.items():
        check_same_tokenizers(other.tokenizers, stage.tokenizers, part=f"the {name} checkpoint")
    if "fine" in later and "coarse" not in later:
        raise RequestError("a fine checkpoint needs a coarse one before it: give both, or neither")


def write_target(
    model: TokenModel,
    batch: TokenBatch,
    sampling: SamplingOptions,
    seeds: Sequence[int],
    batch_clips: int,
    on_clips: Callable[[int], None] | None = None,
) -> Tensor:
    """The stage's own target for true conditions, ``[B, K, T]`` on the CPU; each clip's result depends on its seed
    alone, so neither ``batch_clips`` nor the number of processes changes it."""
    parts = []
    for start in range(0, len(batch), batch_clips):
        rows = list(range(start, min(start + batch_clips, len(batch))))
        conditions = batch.rows(rows).to(model.device).streams
        frames = batch[model.layout.target.name].shape[-1] if model.layout.target.name in batch.streams else None
        parts.append(generate(model, conditions, sampling, [seeds[row] for row in rows], frames=frames).cpu())
        if on_clips is not None:
            on_clips(len(rows))
    return torch.cat(parts)


def codes_for(
    target: str,
    written: Tensor,
    batch: TokenBatch,
    later: LaterStages | None,
    sampling: SamplingOptions,
    seeds: Sequence[int],
    batch_clips: int,
) -> Tensor | None:
    """Acoustic codes ``[B, 4 or 8, T]`` that the written target leads to; None for semantic tokens alone."""
    if target == INSTRUMENTAL_COARSE.name:
        return written
    if target == INSTRUMENTAL_FINE.name:
        return join_codes(batch[INSTRUMENTAL_COARSE.name], written)
    if later is None:
        return None
    streams = {**batch.streams, INSTRUMENTAL_SEMANTIC.name: written}
    coarse = write_target(later.coarse, TokenBatch(streams, batch.clip_ids), sampling, seeds, batch_clips)
    if later.fine is None:
        return coarse
    streams = {**streams, INSTRUMENTAL_COARSE.name: coarse}
    fine = write_target(later.fine, TokenBatch(streams, batch.clip_ids), sampling, seeds, batch_clips)
    return join_codes(coarse, fine)


def decode_clips(acoustic: AcousticTokenizer, codes: Tensor) -> tuple[Waveforms, int]:
    """Waveforms ``[L]`` of ``codes [B, k, T]``, one clip at a time, and how many were not finite.

    A clip that is not finite becomes silence: it counts against the model, and the number of rows stays the same.
    """
    waveforms, failed = [], 0
    for clip in codes:
        samples = acoustic.decode(clip.unsqueeze(0))[0].float().cpu().numpy()
        if not np.isfinite(samples).all():
            samples, failed = np.zeros_like(samples), failed + 1
        waveforms.append(samples)
    return waveforms, failed


def embedding_rows(embedding: Embedding, waveforms: Waveforms, rate_hz: int) -> npt.NDArray[np.float32]:
    """Rows ``[n, d]`` of waveforms at ``rate_hz``, resampled to the embedding's rate."""
    return embedding.rows([resample(samples, rate_hz, embedding.rate_hz) for samples in waveforms])


def centroid_rows(centroids: Tensor, ids: Tensor) -> npt.NDArray[np.float32]:
    """Centroid vector of every semantic token: ids ``[B, 1, T]`` -> rows ``[B * T, d]``."""
    return centroids.cpu()[ids.reshape(-1)].numpy()
