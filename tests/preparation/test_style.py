"""A style from the songs' metadata to what is played: FMA's genres, shards, training, `accompany(style=...)`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_band import sing
from tiny_corpora import vocal_and_band, write_tracks_csv
from tiny_preparation import tiny_config
from tiny_separation import low_pass_model

from hafm_lightning import Accompanist
from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.cli import main
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.pipeline import prepare
from hafm_lightning.shards import open_shards

CONDITIONS = {
    "SemanticStage": ["vocal_semantic", "style"],
    "CoarseStage": ["vocal_semantic", "instrumental_semantic", "style"],
    "FineStage": ["instrumental_coarse"],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six songs of FMA with their genres, prepared as `experiments/prepare.yaml` would with ``styles: true``."""
    base = tmp_path_factory.mktemp("fma")
    (base / "songs").mkdir()
    (base / "model").mkdir()
    tracks = []
    for number in range(6):
        vocal, band = vocal_and_band(4.0, number, 22_050)
        write_audio(base / "songs" / f"{number:06d}.flac", Audio((vocal + band)[None], 22_050))
        genre = ("Rock", "Jazz", "")[number % 3]
        tracks.append({"id": str(number), "track.genre_top": genre, "track.license": "CC0", "track.duration": "4"})
    write_tracks_csv(base / "metadata", tracks)
    prepare(
        tiny_config(
            base / "shards",
            [{"kind": "SongFolder", "path": str(base / "songs"), "metadata": str(base / "metadata")}],
            separation={"model": str(low_pass_model(base / "model")), "device": "cpu"},
            filters=dict.fromkeys(("vocal_activity_min", "instrumental_activity_min", "leakage_max")),
            styles=True,
        )
    )
    return base / "shards"


def fit(kind: str, shards: Path, folder: Path) -> Path:
    """Train a stage for a few steps through the command line; its checkpoint."""
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": f"hafm_lightning.stages.{kind}",
            "init_args": {
                "backbone": {"layers": 1, "width": 16, "heads": 2, "feedforward": 24},
                "conditioning": "aligned",
                "look_ahead_s": 0.04,
                "pattern": "parallel",
                "conditions": CONDITIONS[kind],
                "optimizer": {"learning_rate": 0.005},
            },
        },
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(shards), "batch_size": 4, "crop_s": 0.4},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "default_root_dir": str(folder / kind),
        },
    }
    (folder / f"{kind}.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / f"{kind}.yaml")]) == 0
    return max((folder / kind).rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def checkpoints(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("styled")
    return {role: fit(f"{role.title()}Stage", shards, folder) for role in ("semantic", "coarse", "fine")}


def test_a_genre_of_the_metadata_becomes_a_style_to_ask_for(shards: Path, checkpoints: dict[str, Path]) -> None:
    reader = open_shards(shards, "train")
    assert reader.manifest.styles == ["unknown", "Jazz", "Rock"]
    genre = {name: int(reader[row]["style"].item()) for row, name in enumerate(reader.clip_ids)}
    assert {int(name[5]) % 3: style for name, style in genre.items()}.items() <= {0: 2, 1: 1, 2: 0}.items()

    band = Accompanist.from_checkpoints(**checkpoints, device="cpu", precision="fp32")
    assert band.styles == ("unknown", "Jazz", "Rock")
    vocal = sing(0.4, 24_000)
    takes = {style: band.accompany(vocal, style=style, guidance=50.0, top_k=None) for style in (None, "Rock", "Jazz")}
    tokens = {style: take.tokens["instrumental_coarse"] for style, take in takes.items()}
    assert (tokens["Rock"] != tokens["Jazz"]).any()
    assert (tokens["Rock"] != tokens[None]).any()
    assert takes["Rock"].record["settings"]["style"] == "Rock"
    np.testing.assert_array_equal(  # asked for again, it is the same
        band.accompany(vocal, style="Rock", guidance=50.0, top_k=None).tokens["instrumental_coarse"], tokens["Rock"]
    )
    with pytest.raises(RequestError, match=r"unknown style 'Polka'.*unknown, Jazz, Rock"):
        band.accompany(vocal, style="Polka")


def test_a_style_survives_export(shards: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    write_audio(tmp_path / "vocal.wav", sing(0.3, 24_000))
    files = [word for role, path in checkpoints.items() for word in (f"--{role}", str(path))]
    assert main(["export", "--out", str(tmp_path / "model"), *files]) == 0
    command = ["generate", "--vocal", str(tmp_path / "vocal.wav"), "--out", str(tmp_path / "out")]
    assert main([*command, "--model", str(tmp_path / "model"), "--style", "Jazz"]) == 0
    assert main([*command, "--model", str(tmp_path / "model"), "--style", "jazzz"]) == 2


def test_stages_that_number_styles_differently_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    changed = torch.load(checkpoints["coarse"], weights_only=True)
    changed["hafm_lightning"]["styles"] = ["unknown", "Rock", "Jazz"]
    torch.save(changed, tmp_path / "coarse.ckpt")
    with pytest.raises(
        RequestError, match=r"the coarse stage .* was trained with different styles than the semantic stage"
    ):
        Accompanist.from_checkpoints(**checkpoints | {"coarse": tmp_path / "coarse.ckpt"})
