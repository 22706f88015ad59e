"""A small toy band with trained offline tokenizers and shards: what evaluation needs, made in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hafm_lightning.audio import read_audio
from hafm_lightning.evaluation.segments import SegmentSettings, Selection, load_clip, select_segments, tokenize_clips
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.shards import STORED_STREAMS, Manifest, stream_description, write_shard
from hafm_lightning.stages import CoarseStage, FineStage, SemanticStage, Stage
from hafm_lightning.tokenizers import Tokenizers, save_tokenizers
from hafm_lightning.tokenizers.offline import OfflineAcousticTokenizer, OfflineSemanticTokenizer
from hafm_lightning.toyband.corpus import synthesise_corpus

CLIP_S = 1.0
SETTINGS: dict[str, Any] = {"duration_s": CLIP_S, "clips": 6, "active": 0.3}
TINY_BACKBONE = BackboneConfig(layers=1, width=16, heads=2, feedforward=24)


@dataclass(frozen=True)
class TinyMusic:
    """Where everything lies."""

    songs: Path
    shards: Path
    tokenizers: Tokenizers

    @property
    def tokenizers_folder(self) -> Path:
        return self.shards / "tokenizers"


def make_tiny_music(root: Path) -> TinyMusic:
    """Three train and three test songs of 8 s, and shards of 1 s clips."""
    songs = root / "songs"
    synthesise_corpus(songs, train_songs=3, test_songs=3, duration_s=8.0, workers=1)

    def sounds(rate_hz: int) -> Iterator[np.ndarray]:
        for song in sorted(songs.glob("*/*/")):
            for stem in ("vocals", "mixture"):
                yield read_audio(song / f"{stem}.wav", mono=True, rate_hz=rate_hz).samples[0]

    tokenizers = Tokenizers(
        OfflineSemanticTokenizer.train(sounds(16000)), OfflineAcousticTokenizer.train(sounds(24000))
    )
    music = TinyMusic(songs, root / "shards", tokenizers)
    save_tokenizers(tokenizers.semantic, tokenizers.acoustic, music.tokenizers_folder)
    for split, source, count in (("train", "train", 6), ("validation", "train", 6), ("test", "test", 3)):
        settings = SegmentSettings(str(songs), source, CLIP_S, clips=count, active=0.3, seed=len(split))
        clips = [load_clip(segment, tokenizers) for segment in select_segments(settings).segments]
        batch = tokenize_clips(clips, tokenizers)
        arrays = {
            "vocal_semantic": batch["vocal_semantic"][:, 0].numpy(),
            "instrumental_semantic": batch["instrumental_semantic"][:, 0].numpy(),
            "instrumental_codes": np.concatenate(
                [batch["instrumental_coarse"].numpy(), batch["instrumental_fine"].numpy()], axis=1
            ),
        }
        arrays = {name: ids.astype(np.uint16) for name, ids in arrays.items()}
        shard = write_shard(music.shards / split / "shard-00000.safetensors", arrays, batch.clip_ids, CLIP_S)
        streams = {name: stream_description(STORED_STREAMS[name]) for name in arrays}
        Manifest(split, CLIP_S, streams, tokenizers.identities(), "soxr-hq", {}, [], [shard]).save(music.shards / split)
    return music


def tiny_stage(name: str, **settings: object) -> Stage:
    """An untrained stage (``semantic``, ``coarse``, ``fine``) of a few thousand parameters."""
    kind = {"semantic": SemanticStage, "coarse": CoarseStage, "fine": FineStage}[name]
    return kind(**{"backbone": TINY_BACKBONE, "conditioning": "aligned", "pattern": "nonautoregressive", **settings})


def tiny_selection(music: TinyMusic, **changes: Any) -> Selection:
    """Six test segments of :data:`CLIP_S`, or what ``changes`` asks for."""
    return select_segments(SegmentSettings(str(music.songs), **{**SETTINGS, **changes}))


def save_stage(stage: Stage, music: TinyMusic, path: Path) -> Path:
    """Write a checkpoint of a stage that was trained on ``music``."""
    import lightning.pytorch as pl

    stage.tokenizers, stage.duration_s = music.tokenizers.identities(), CLIP_S
    stage.tokenizers_folder = str(music.tokenizers_folder)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0, barebones=True)
    trainer.strategy.connect(stage)
    trainer.save_checkpoint(path)
    return path
