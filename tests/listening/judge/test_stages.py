"""The stages as a judge: cross-entropy without the vocal minus with it, against an independent computation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_band import WINDOW_S, TinyBand, sing

from hafm_lightning.accompanist.model_folder import write_model_folder
from hafm_lightning.accompanist.stage_network import networks_from_checkpoints
from hafm_lightning.errors import RequestError
from hafm_lightning.listening.judge.base import Answer, Presented, Samples, without_vocal
from hafm_lightning.listening.judge.stages import StagesJudge, StagesSource
from hafm_lightning.listening.study import CRITERIA
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.tokens import NULL

RATE_HZ = 24_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(paper_band: TinyBand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    networks = networks_from_checkpoints(paper_band.semantic, paper_band.coarse, paper_band.fine, 3)
    return write_model_folder(
        tmp_path_factory.mktemp("judge") / "model", networks, load_tokenizers(paper_band.tokenizers)
    )


@pytest.fixture(scope="module")
def judge(folder: Path) -> StagesJudge:
    return StagesSource(str(folder), CRITERIA).load(CPU)


def sounds(duration_s: float) -> tuple[Samples, Samples, Samples]:
    vocal, a, b = (np.asarray(sing(duration_s, RATE_HZ, seed=seed).samples[0], np.float32) for seed in range(3))
    return vocal, vocal + a, vocal + b


def by_hand(judge: StagesJudge, vocal: Samples, band: Samples) -> float:
    """The score of one window, from logits."""
    semantic, acoustic = judge.tokenizers.semantic, judge.tokenizers.acoustic
    from soxr import resample

    low = [torch.from_numpy(resample(sound, RATE_HZ, 16_000, quality="HQ"))[None] for sound in (vocal, band)]
    codes = acoustic.encode(torch.from_numpy(band)[None])
    tokens = {
        "vocal_semantic": semantic.encode(low[0]),
        "instrumental_semantic": semantic.encode(low[1]),
        "instrumental_coarse": codes[:, :4],
        "instrumental_fine": codes[:, 4:],
    }
    gains = []
    for model, target in zip(judge.models, ("instrumental_semantic", "instrumental_coarse"), strict=True):
        losses = []
        for vocal_tokens in (torch.full_like(tokens["vocal_semantic"], NULL), tokens["vocal_semantic"]):
            with torch.inference_mode():
                logits = model({**tokens, "vocal_semantic": vocal_tokens})
            losses.append(F.cross_entropy(logits.double().flatten(0, -2), tokens[target].flatten()).item())
        gains.append(losses[0] - losses[1])
    return sum(gains) / 2


def test_the_score_is_the_gain_by_the_vocal(judge: StagesJudge) -> None:
    vocal, mix, _ = sounds(WINDOW_S)
    expected = by_hand(judge, vocal, without_vocal(mix, vocal))
    assert abs(expected) > 1e-3
    assert judge.score(vocal, mix, RATE_HZ) == pytest.approx(expected, abs=1e-4)


def test_a_longer_clip_is_the_mean_over_windows(judge: StagesJudge) -> None:
    vocal, mix, _ = sounds(2 * WINDOW_S)
    half = len(vocal) // 2
    band = without_vocal(mix, vocal)  # one gain for the whole clip
    parts = [by_hand(judge, vocal[cut], band[cut]) for cut in (slice(0, half), slice(half, 2 * half))]
    # the resampler has no neighbours at the cut when windows are resampled one by one
    assert judge.score(vocal, mix, RATE_HZ) == pytest.approx(np.mean(parts), abs=0.1)


@pytest.mark.parametrize("duration_s", [0.1, 0.33, 0.5, 1.05])
def test_any_length_is_judged(judge: StagesJudge, duration_s: float) -> None:
    vocal, a, b = sounds(duration_s)
    trials = [Presented(vocal, a, b, RATE_HZ), Presented(vocal, b, a, RATE_HZ)]
    one, other = (answer for answer in judge.judge(trials) if isinstance(answer, Answer))
    assert set(one.opinions) == set(CRITERIA)
    assert len({o.choice for o in one.opinions.values()}) == 1
    assert {one.opinions["overall"].choice, other.opinions["overall"].choice} == {"first", "second"}
    assert one.opinions["overall"].confidence == other.opinions["overall"].confidence


def test_the_identity_follows_the_model(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "card": {"data": "other"}}))
    identities = [
        StagesSource(str(path), criteria).identity
        for path, criteria in ((folder, CRITERIA), (other, CRITERIA), (folder, ("overall",)))
    ]
    assert len(set(identities)) == 3
    assert StagesSource(str(folder), CRITERIA).identity == identities[0]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="folder does not exist"):
        StagesSource(str(tmp_path / "nowhere"), CRITERIA).load(CPU)
    with pytest.raises(RequestError, match="is no model folder"):
        StagesSource(str(tmp_path), CRITERIA).load(CPU)
