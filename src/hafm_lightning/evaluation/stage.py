"""Music of one stage that is still in training, and the clips that it is evaluated on; for the callback.

One stage makes no sound by itself. It is evaluated with true tokens for the stages before it; a coarse stage is decoded
from 4 codebooks, a fine one from all 8. A semantic stage is decoded through a coarse and a fine checkpoint where they
are given; without them there is no sound, and :func:`centroid_rows` gives the Frechet distance between the centroid
vectors of generated and true tokens, which is a distance of token statistics and not a FAD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hafm_lightning.accompanist.windows import window_seed
from hafm_lightning.audio import Audio, limit_peak, mix, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.pictures import log_mel_picture
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.protocol.set_scores import Rows, embedding_rows
from hafm_lightning.evaluation.segments import MusicClip, Selection, clip_file_stem, load_clip, tokenize_clips
from hafm_lightning.files import write_json
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.stages import Stage
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import AcousticTokenizer
from hafm_lightning.tokenizers.compatibility import check_same_tokenizers
from hafm_lightning.tokens import (
    CLIP_DURATION_S,
    INSTRUMENTAL_COARSE,
    INSTRUMENTAL_FINE,
    INSTRUMENTAL_SEMANTIC,
    TokenBatch,
    join_codes,
)

Waveforms = list[npt.NDArray[np.float32]]

PROTOCOL_FILE = "protocol.json"
SOUNDS = ("vocal", "generated", "truth", "mix")
"""Sounds of a clip that are written, in this order."""
SEED_STRIDE = 1_000_003
"""Between two runs' seeds, more than any number of clips."""


@dataclass
class StageMaterial:
    """The clips of one process: read once a run, so that a measurement costs generation, decoding and distances only.

    Attributes:
        clips: This process's share.
        seeds: One seed a clip, the same whatever the number of processes.
        batch: Their tokens; None where the share is empty.
        total: Clips over all processes.
        tokenizers: The pair that the training data was made with.
        later: Stages that turn a semantic stage's tokens into sound: none, coarse, or coarse and fine.
        embeddings: Make the rows of the FAD.
    """

    clips: list[MusicClip]
    seeds: list[int]
    batch: TokenBatch | None
    total: int
    tokenizers: Tokenizers
    later: list[TokenModel]
    embeddings: list[Embedding]
    _rows: dict[tuple[str, int], tuple[Rows, Rows]] = field(default_factory=dict)

    @property
    def rate_hz(self) -> int:
        """Sample rate of decoded clips."""
        return self.tokenizers.acoustic.identity.sample_rate_hz

    def reference_rows(self, embedding: Embedding, codebooks: int) -> tuple[Rows, Rows]:
        """Rows of the true accompaniments, and of the same through ``codebooks`` of the codec; computed once."""
        key = (embedding.identity, codebooks)
        if key not in self._rows:
            assert self.batch is not None
            true = embedding_rows(embedding, [clip.accompaniment for clip in self.clips], self.rate_hz)
            codes = join_codes(self.batch[INSTRUMENTAL_COARSE.name], self.batch[INSTRUMENTAL_FINE.name])
            through_codec, _ = decode_clips(self.tokenizers.acoustic, codes[:, :codebooks])
            self._rows[key] = (true, embedding_rows(embedding, through_codec, self.rate_hz))
        return self._rows[key]


def read_material(
    selection: Selection,
    tokenizers: Tokenizers,
    later: list[TokenModel],
    embeddings: Sequence[EmbeddingSource],
    *,
    conditions: Sequence[str],
    seed: int,
    rank: int,
    world: int,
    noise_sigma: float,
    device: torch.device,
) -> StageMaterial:
    """Read and tokenize every ``world``-th segment from the ``rank``-th on, with the streams in ``conditions``;
    RequestError if a segment cannot be read or an embedding cannot be loaded."""
    mine = list(range(rank, len(selection.segments), world))
    clips = [load_clip(selection.segments[index], tokenizers) for index in mine]
    return StageMaterial(
        clips=clips,
        seeds=[seed * SEED_STRIDE + index for index in mine],
        batch=tokenize_clips(clips, tokenizers, noise_sigma, conditions) if clips else None,
        total=len(selection.segments),
        tokenizers=tokenizers,
        later=later,
        embeddings=[load_embedding(source).to(device) for source in embeddings],
    )


def write_protocol(path: Path, selection: Selection, material: StageMaterial, more: Mapping[str, Any]) -> None:
    """Write the protocol of a run's numbers as JSON: segments, tokenizers, embeddings, reference, and ``more``."""
    content = {
        "segments": asdict(selection.settings) | {"clips": [segment.clip_id for segment in selection.segments]},
        "problems": selection.problems,
        "tokenizers": material.tokenizers.identities(),
        "embeddings": [embedding.provenance() for embedding in material.embeddings],
        "reference": "true accompaniments of the same segments",
        "conditions": "true tokens for the stages before the one in training",
        "tokenized": f"in {CLIP_DURATION_S:g} s of the song around each segment",
        **more,
    }
    write_json(path, content)


def write_sounds(clips: Sequence[MusicClip], waveforms: Waveforms, folder: Path) -> list[tuple[str, Path]]:
    """Write :data:`SOUNDS` as ``<stem>.<name>.wav`` and spectrograms as ``<stem>.png``; returns id and stem of each."""
    written = []
    for clip, samples in zip(clips, waveforms, strict=False):
        parts = (clip.vocal, samples, clip.accompaniment)
        vocal, generated, truth = (Audio(part[None], clip.acoustic_hz) for part in parts)
        sounds = dict(zip(SOUNDS, (*map(limit_peak, (vocal, generated, truth)), mix(vocal, generated)), strict=True))
        stem = folder / clip_file_stem(clip.clip_id)
        for name, audio in sounds.items():
            write_audio(f"{stem}.{name}.wav", audio)
        log_mel_picture({name: sounds[name] for name in SOUNDS[:3]}, Path(f"{stem}.png"))
        written.append((clip.clip_id, stem))
    return written


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
    on_clips: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The stage's own target for true conditions, ``[B, K, T]`` on the CPU.

    A clip's result depends on its seed and the target alone, so neither ``batch_clips`` nor the number of processes
    changes it, and stages that write one after the other do not draw the same random numbers.
    """
    target = batch.streams.get(model.layout.target.name)
    frames = None if target is None else target.shape[-1]
    own_seeds = [window_seed(seed, model.layout.target.name, 0) for seed in seeds]
    parts = []
    for start in range(0, len(batch), batch_clips):
        rows = range(start, min(start + batch_clips, len(batch)))
        conditions = batch.rows(rows).to(model.device).streams
        parts.append(generate(model, conditions, sampling, [own_seeds[row] for row in rows], frames=frames).cpu())
        on_clips(len(rows))
    return torch.cat(parts)


def codes_for(
    target: str, written: Tensor, batch: TokenBatch, later: Sequence[TokenModel], write: Callable[..., Tensor]
) -> Tensor | None:
    """Acoustic codes ``[B, 4 or 8, T]`` that the written target leads to; None for semantic tokens alone.

    ``write`` is :func:`write_target` with sampling, seeds and batch size.
    """
    streams = {**batch.streams, target: written}
    for model in later if target == INSTRUMENTAL_SEMANTIC.name else ():
        target = model.layout.target.name
        streams[target] = write(model, TokenBatch(streams, batch.clip_ids))
    if target == INSTRUMENTAL_FINE.name:
        return join_codes(streams[INSTRUMENTAL_COARSE.name], streams[target])
    return None if target == INSTRUMENTAL_SEMANTIC.name else streams[target]


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


def centroid_rows(centroids: Tensor, ids: Tensor) -> Rows:
    """Centroid vector of every semantic token: ids ``[B, 1, T]`` -> rows ``[B * T, d]``."""
    return centroids.cpu()[ids.reshape(-1)].numpy()
