"""Losses with true, null and another song's conditions, clip by clip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hafm_lightning.evaluation.token_scores.conditioning_gain import clip_losses
from hafm_lightning.modeling.token_scores import other_song_clips
from hafm_lightning.modeling.transformer import BackboneConfig
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
    losses = clip_losses(stage, TokenBatch(streams, CLIPS))
    for index, other in enumerate(other_song_clips(CLIPS)):
        true = {name: ids[index : index + 1] for name, ids in streams.items()}
        target = true["instrumental_coarse"]
        swapped = {n: streams[n][other : other + 1] for n in ("vocal_semantic", "instrumental_semantic")} | {
            "instrumental_coarse": target
        }
        null = {n: torch.full_like(swapped[n], NULL) for n in ("vocal_semantic", "instrumental_semantic")} | {
            "instrumental_coarse": target
        }
        for found, given in ((losses.true, true), (losses.null, null), (losses.other, swapped)):
            with torch.no_grad():
                expected = F.cross_entropy(stage.model(given).permute(0, 3, 1, 2), target)
            assert found[index] == pytest.approx(float(expected), abs=1e-5)


def test_the_summary_takes_whole_songs():
    from hafm_lightning.evaluation.token_scores.conditioning_gain import ClipLosses

    losses = ClipLosses(CLIPS, [1.0, 2, 3, 4, 5], [2.0, 3, 4, 5, 6], [1.5, 2.5, 3.5, 4.5, 5.5])
    summary = losses.summary()
    assert summary["loss"].mean == pytest.approx(3)
    assert summary["conditioning_gain"].mean == pytest.approx(1)
    assert summary["other_clip_gap"].mean == pytest.approx(0.5)
    assert summary["loss"].groups == 2
    assert summary["conditioning_gain"].low == pytest.approx(1)
