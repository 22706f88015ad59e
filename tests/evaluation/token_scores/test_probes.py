"""Probes: how far a stage listens, on a stage that repeats what it hears; separated vocals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_music import CLIP_S, TinyMusic

from hafm_lightning.audio import read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import (
    MusicClip,
    tokenize_clips,
)
from hafm_lightning.evaluation.systems.separated import SeparatedVocals
from hafm_lightning.evaluation.token_scores.probes import probe_plots
from hafm_lightning.evaluation.token_scores.scores import score_clips, vocal_streams
from hafm_lightning.modeling.layout import SequenceLayout
from hafm_lightning.songs.separation import SeparationSettings
from hafm_lightning.tokens import TokenBatch


class Parrot(torch.nn.Module):
    """Expects the accompaniment to be the vocal's token at the same frame, and hears nothing else."""

    layout = SequenceLayout.of(["vocal_semantic"], "instrumental_semantic", "parallel", "aligned")
    device = torch.device("cpu")

    def forward(self, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        vocal = streams["vocal_semantic"]
        heard = torch.nn.functional.one_hot(vocal.clamp(min=0), 500).float() * 8.0
        return torch.where((vocal < 0)[..., None], torch.zeros(()), heard)


def test_probes_show_how_far_a_stage_listens(music: TinyMusic, clips: list[MusicClip]) -> None:
    batch = tokenize_clips(clips, music.tokenizers)
    batch = TokenBatch({**batch.streams, "instrumental_semantic": batch["vocal_semantic"]}, batch.clip_ids)
    model: Any = Parrot()
    time, semitones, noise = probe_plots({"semantic": model}, clips, batch, music.tokenizers)
    losses = dict(zip(time.curves[0].x, time.curves[0].y, strict=True))
    assert losses[0.0] == 0
    assert min(losses[0.12], losses[-0.12]) > 0
    assert losses[0.48] > losses[0.12]
    assert time.baselines["vocal of another song"] > losses[0.12]
    # without conditions this stage knows nothing: all 500 tokens are as likely, and it was sure of the true one
    certain = math.log(1 + 499 * math.exp(-8.0))
    assert time.baselines["no conditions at all"] == pytest.approx(math.log(500) - certain, abs=1e-5)
    assert semitones.baselines == {"vocal of another song": time.baselines["vocal of another song"]}
    assert dict(zip(semitones.curves[0].x, semitones.curves[0].y, strict=True))[4.0] > 0
    assert noise.curves[0].y[0] == 0
    assert noise.curves[0].y[-1] > noise.curves[0].y[1]
    assert score_clips(model, batch).accuracy.mean() == 1.0
    assert [stream.name for stream in vocal_streams(model)] == ["vocal_semantic"]


def test_separated_vocals_equal_to_the_clean_ones_leave_no_gap(
    music: TinyMusic, clips: list[MusicClip], tmp_path: Path
) -> None:
    for clip in clips:
        write_audio(tmp_path / clip.segment.song.id / "vocals.wav", read_audio(clip.segment.song.vocals))
    vocals = SeparatedVocals(str(tmp_path), SeparationSettings())
    clean = read_audio(clips[0].segment.song.vocals, start_s=clips[0].segment.start_s, duration_s=CLIP_S)
    np.testing.assert_array_equal(vocals.read(clips[0].segment).samples, clean.samples)
    model: Any = Parrot()
    batch = tokenize_clips(clips, music.tokenizers)
    *_, noise = probe_plots(
        {"semantic": model}, clips, batch, music.tokenizers, separated=lambda clip: clip.sound.vocal
    )
    assert noise.baselines["separated vocals"] == 0.0
    with pytest.raises(RequestError, match="no folder"):
        SeparatedVocals(str(tmp_path / "absent"), SeparationSettings())
