"""Music of a stage in training: independent draws of the stages that write one after the other."""

from __future__ import annotations

import numpy as np
import torch
from tiny_music import TinyMusic, tiny_stage

from hafm_lightning.evaluation.segments import MusicClip, tokenize_clips
from hafm_lightning.evaluation.stage import codes_for, write_target
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import TokenModel

ANY_TOKEN = SamplingOptions(guidance=1.0, temperature=1.0, top_k=None)


def indifferent(name: str) -> TokenModel:
    """A stage to which all tokens are equally likely: a token's id is its place in the distribution."""
    model = tiny_stage(name).eval().model
    with torch.no_grad():
        for parameter in (model.head_weight, model.head_bias):
            parameter.zero_()
    return model


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of the first codebook's ids of the same clips, frame by frame."""
    a, b = (ids[:, 0].double() for ids in (first, second))
    frames = min(a.shape[1], b.shape[1])
    return float(np.corrcoef(a[:, :frames].flatten(), b[:, :frames].flatten())[0, 1])


def test_stages_in_a_row_draw_independent_tokens(music: TinyMusic, clips: list[MusicClip]) -> None:
    """The places of semantic, coarse and fine tokens in their distributions had a correlation of 1.0000."""
    batch = tokenize_clips(clips, music.tokenizers)
    seeds = list(range(len(clips)))
    written: dict[str, torch.Tensor] = {}

    def write(model: TokenModel, given: object) -> torch.Tensor:
        written[model.layout.target.name] = write_target(model, given, ANY_TOKEN, seeds, batch_clips=4)  # type: ignore[arg-type]
        return written[model.layout.target.name]

    semantic, coarse, fine = (indifferent(name) for name in ("semantic", "coarse", "fine"))
    codes = codes_for("instrumental_semantic", write(semantic, batch), batch, [coarse, fine], write)
    assert codes is not None
    assert codes.shape[1] == 8
    names = list(written)
    for first in names:
        again = write_target(
            {"instrumental_semantic": semantic, "instrumental_coarse": coarse, "instrumental_fine": fine}[first],
            batch,
            ANY_TOKEN,
            seeds,
            batch_clips=len(clips),
        )
        assert correlation(written[first], again) > 0.999  # the same seed writes the same
        for second in names[names.index(first) + 1 :]:
            assert abs(correlation(written[first], written[second])) < 0.15, (first, second)
