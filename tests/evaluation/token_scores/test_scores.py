"""Losses with true, null and another song's conditions, clip by clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_music import TinyMusic

from hafm_lightning.evaluation.token_scores.scores import score_clips, stored_clips
from hafm_lightning.modeling.token_scores import other_song, other_song_clips, without_conditions
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.shards import open_shards
from hafm_lightning.stages import CoarseStage
from hafm_lightning.tokens import NULL, TokenBatch

CLIPS = ["b@0", "a@0", "a@5", "b@5", "a@10"]


@pytest.mark.parametrize("pattern", ["delay", "nonautoregressive"])
def test_losses_are_those_of_single_clips(pattern):
    torch.manual_seed(1)
    stage = CoarseStage(
        pattern=pattern, conditioning="aligned", backbone=BackboneConfig(layers=1, width=16, heads=2, feedforward=24)
    ).eval()
    streams = {
        "vocal_semantic": torch.randint(0, 500, (5, 1, 4)),
        "instrumental_semantic": torch.randint(0, 500, (5, 1, 4)),
        "instrumental_coarse": torch.randint(0, 1024, (5, 4, 6)),
    }
    clips = TokenBatch(streams, CLIPS)
    losses = {
        "true": score_clips(stage.model, clips).losses,
        "null": score_clips(stage.model, clips, without_conditions(clips, stage.model.layout.conditions)).losses,
        "other": score_clips(stage.model, clips, other_song(clips, stage.model.layout.conditions)).losses,
    }
    for index, other in enumerate(other_song_clips(CLIPS)):
        true = {name: ids[index : index + 1] for name, ids in streams.items()}
        target = true["instrumental_coarse"]
        swapped = {n: streams[n][other : other + 1] for n in ("vocal_semantic", "instrumental_semantic")} | {
            "instrumental_coarse": target
        }
        null = {n: torch.full_like(swapped[n], NULL) for n in ("vocal_semantic", "instrumental_semantic")} | {
            "instrumental_coarse": target
        }
        for found, given in ((losses["true"], true), (losses["null"], null), (losses["other"], swapped)):
            with torch.no_grad():
                expected = F.cross_entropy(stage.model(given).permute(0, 3, 1, 2), target)
            assert found[index] == pytest.approx(float(expected), abs=1e-5)


def test_stored_clips_are_the_tokens_of_the_shards(music: TinyMusic) -> None:
    reader = open_shards(music.shards, "test")
    clips = stored_clips(str(music.shards), "test")
    assert clips.clip_ids == reader.clip_ids
    for index in range(len(reader)):
        stored = reader[index]
        np.testing.assert_array_equal(clips["vocal_semantic"][index].numpy(), stored["vocal_semantic"])
        np.testing.assert_array_equal(clips["instrumental_coarse"][index].numpy(), stored["instrumental_codes"][:4])
        np.testing.assert_array_equal(clips["instrumental_fine"][index].numpy(), stored["instrumental_codes"][4:])
