"""The clips on which a stage in training is evaluated: one process's share, with tokens, reference rows and sounds.

Read once a run; every measurement after that costs generation, decoding and distances only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.audio import Audio, limit_peak, mix, write_audio
from hafm_lightning.evaluation.card.pictures import log_mel_picture
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.segments import MusicClip, Selection, clip_file_stem, load_clip, tokenize_clips
from hafm_lightning.evaluation.stage.music import LaterStages, Waveforms, decode_clips, embedding_rows
from hafm_lightning.files import write_json
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import INSTRUMENTAL_COARSE, INSTRUMENTAL_FINE, TokenBatch, join_codes

Rows = npt.NDArray[np.float32]

PROTOCOL_FILE = "protocol.json"
SOUNDS = ("vocal", "generated", "truth", "mix")
"""Sounds that are written of a clip, in this order."""
SEED_STRIDE = 1_000_003
"""Between two runs' seeds, more than any number of clips."""


@dataclass
class StageMaterial:
    """The clips of one process.

    Attributes:
        clips: This process's share.
        seeds: One seed a clip, the same whatever the number of processes.
        batch: Their tokens; None where the share is empty.
        total: Clips over all processes.
        tokenizers: The pair that the training data was made with.
        later: Stages that turn a semantic stage's tokens into sound.
        embeddings: Make the rows of the FAD.
    """

    clips: list[MusicClip]
    seeds: list[int]
    batch: TokenBatch | None
    total: int
    tokenizers: Tokenizers
    later: LaterStages | None
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
    later: LaterStages | None,
    embeddings: Sequence[EmbeddingSource],
    *,
    conditions: Sequence[str],
    seed: int,
    rank: int,
    world: int,
    noise_sigma: float,
    device: torch.device,
) -> StageMaterial:
    """Read and tokenize every ``world``-th segment from the ``rank``-th on, with the streams in ``conditions``.

    Raises:
        RequestError: A segment cannot be read, or an embedding cannot be loaded.
    """
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
        **more,
    }
    write_json(path, content)


def write_sounds(clips: Sequence[MusicClip], waveforms: Waveforms, folder: Path) -> list[tuple[str, Path]]:
    """Write vocal, generated, truth and mix as ``<stem>.<name>.wav`` and spectrograms as ``<stem>.png``.

    Returns:
        Clip id and ``folder/<stem>`` of each.
    """
    written = []
    for clip, samples in zip(clips, waveforms, strict=False):
        vocal, generated, truth = (
            Audio(part[None], clip.acoustic_hz) for part in (clip.vocal, samples, clip.accompaniment)
        )
        sounds = dict(zip(SOUNDS, (*map(limit_peak, (vocal, generated, truth)), mix(vocal, generated)), strict=True))
        stem = folder / clip_file_stem(clip.clip_id)
        for name, audio in sounds.items():
            write_audio(f"{stem}.{name}.wav", audio)
        log_mel_picture({name: sounds[name] for name in SOUNDS[:3]}, Path(f"{stem}.png"))
        written.append((clip.clip_id, stem))
    return written
