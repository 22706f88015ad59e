"""Guidance and sampling are searched on songs that no stage was trained on, and kept only for a reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_music import CLIP_S, TinyMusic, save_stage, tiny_stage

from hafm_lightning.cli import DONE, WRONG_REQUEST, main
from hafm_lightning.configuration.settings import read_settings
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import load_card
from hafm_lightning.evaluation.contrasts import Contrasts
from hafm_lightning.evaluation.segments import ClipReader
from hafm_lightning.evaluation.settings import EvaluateSettings, TuningSettings
from hafm_lightning.evaluation.tuning import best_of, row_of, validation_clips
from hafm_lightning.modeling.sampling import SamplingOptions

PRESENT = SamplingOptions(1.0, 0.9, 250)
OTHER = SamplingOptions(2.0, 0.9, 250)


@pytest.fixture(scope="module")
def config(music: TinyMusic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of two stages on the tiny toy band, one as checkpoints and one as runs."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for model in ("first", "second"):
        for role in ("semantic", "coarse"):
            folder = root / model / role / "run-000" / "checkpoints"
            folder.mkdir(parents=True)
            save_stage(tiny_stage(role), music, folder / "best.ckpt")
    settings: dict[str, Any] = {
        "output": str(root / "card"),
        "root": str(music.songs),
        "tokenizers": str(music.tokenizers_folder),
        "shards": str(music.shards),
        "semantic": str(root / "first" / "semantic"),
        "coarse": str(root / "first" / "coarse"),
        "protocols": [{"name": "short", "duration_s": CLIP_S, "clips": 6, "active": 0.3}],
        "systems": ["random", "two_stages"],
        "metrics": ["chroma", "tokens"],
        "sampling": {"guidance": 1.0},
    }
    (root / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    return root / "evaluate.yaml"


def test_two_models_are_compared_on_the_same_clips(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models.second", str(config.parent / "second"), "--models.same", str(config.parent / "first")]
    assert main(["evaluate", "--config", str(config), *words]) == DONE
    said = capsys.readouterr().out
    card = load_card(config.parent / "card" / "card.json")
    table, compared, *tokens = card.tables
    rows = {row.system: row for row in table.rows}
    assert list(rows) == ["random", "two_stages", "model-second", "model-same"]
    assert rows["model-second"].label == "three stages: second"
    key = "chroma_cosine"
    # the same weights, seeds and sampling as `two_stages`: the same sound
    assert rows["model-same"].values[key].value == rows["two_stages"].values[key].value
    (row,) = compared.rows
    assert row.label == "three stages: same − three stages: second"
    gap = (rows["model-same"].values[key].value or 0) - (rows["model-second"].values[key].value or 0)
    assert row.values[key].value == pytest.approx(gap)
    low, high = row.values[key].low, row.values[key].high
    assert low is not None
    assert high is not None
    assert low < gap < high
    assert [it.name for it in tokens] == ["tokens", "tokens: second", "tokens: same"]
    first, _, same = (it.rows[0].values["loss"].value for it in tokens)
    assert first == same
    assert "three stages: second" in said
    assert len(said.splitlines()) < 45, "the summary, not the whole card"
    assert "Cosine of chroma frames" not in said
    assert main(["evaluate", "--config", str(config), *words, "--details"]) == DONE
    assert "Cosine of chroma frames" in capsys.readouterr().out


def test_what_is_no_model_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--config", str(config), f"--models.other={tmp_path}"]) == WRONG_REQUEST
    assert "models.other" in capsys.readouterr().err
    assert main(["evaluate", "--config", str(config), f"--models.a/b={tmp_path}"]) == WRONG_REQUEST
    assert "models" in capsys.readouterr().err


def test_the_search_tries_every_combination_and_reports(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tune-sampling", "--tuning.guidance", "1", "2", "--tuning.temperature", "0.9", "--tuning.top_k", "250"]
    assert main(["evaluate", "--config", str(config), *words]) == DONE
    said = capsys.readouterr().out
    folder = config.parent / "card" / "tuning"
    card = load_card(folder / "card.json")
    table, differences = card.tables
    assert [row.system for row in table.rows] == ["codec_8", "random", row_of(PRESENT), row_of(OTHER)]
    assert [row.label for row in table.rows][2:] == [
        "guidance 1, temperature 0.9, top-k 250 (present)",
        "guidance 2, temperature 0.9, top-k 250",
    ]
    assert len(differences.rows) == 1
    assert "best: guidance" in said
    assert str(folder / "card.html") in said
    ids = {
        segment.rsplit("@", 1)[0]
        for segment in {clip for row in (folder / "scores").glob("*") for clip in read_clips(row)}
    }
    assert ids
    assert all(song.startswith("toyband_train") for song in ids), "not the songs of the final card"


def read_clips(path: Path) -> list[str]:
    import json

    return list(json.loads(path.read_text())["clips"])


def test_a_search_without_a_model_or_with_an_unknown_score_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["evaluate", "--config", str(config), "--tune-sampling"]
    assert main([*base, "--semantic=", "--coarse="]) == WRONG_REQUEST
    assert "--tune-sampling needs a model" in capsys.readouterr().err


def test_songs_of_training_are_left_out(config: Path, music: TinyMusic, tmp_path: Path) -> None:
    settings = read_settings(EvaluateSettings, ["--config", str(config)])
    reader = ClipReader.of(music.tokenizers)
    assert len(set(validation_clips(settings, reader).songs)) == 3, "the songs of the validation split"
    shutil.copytree(music.shards / "train", tmp_path / "train")
    with pytest.raises(RequestError, match="0 songs with singing that no stage has trained on"):
        validation_clips(replace(settings, shards=str(tmp_path)), reader)
    unseen = replace(settings, shards=str(tmp_path), tuning=TuningSettings(split="test", songs=2))
    assert len(validation_clips(unseen, reader).segments) == 2


def test_the_best_is_recommended_only_where_it_is_significantly_better() -> None:
    songs = [f"song {number}" for number in range(12)]
    base = np.random.default_rng(0).uniform(0.4, 0.6, len(songs))
    noise = np.random.default_rng(1).normal(0, 0.1, len(songs))
    noise += 0.001 - noise.mean()
    for gain, significant in ((np.full(len(songs), 0.05), True), (noise, False), (np.full(len(songs), -0.05), None)):
        clips = {"chroma_cosine": {row_of(PRESENT): base, row_of(OTHER): base + gain}}
        best, score, found = best_of([PRESENT, OTHER], PRESENT, "chroma_cosine", Contrasts(songs, clips))
        if significant is None:
            assert (best, found) == (PRESENT, None)
            continue
        assert best == OTHER
        assert score == pytest.approx(float((base + gain).mean()))
        assert found is not None
        assert (found.low > 0) is significant


@pytest.mark.parametrize("changes", [{"guidance": (-1.0,)}, {"temperature": (0.0001,)}, {"top_k": (0,)}, {"songs": 1}])
def test_what_cannot_be_tried_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TuningSettings(**changes)
