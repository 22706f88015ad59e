"""Styles from the songs' metadata to checkpoints: FMA's genres, shards, and stages trained on them."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny_corpora import vocal_and_band, write_tracks_csv
from tiny_preparation import tiny_config
from tiny_separation import low_pass_model

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.cli import main
from hafm_lightning.preparation.pipeline import prepare

CONDITIONS = {
    "SemanticStage": ["vocal_semantic", "style"],
    "CoarseStage": ["vocal_semantic", "instrumental_semantic", "style"],
    "FineStage": ["instrumental_coarse"],
}


def prepare_styled_shards(base: Path) -> Path:
    """Six songs of FMA with their genres, prepared as `experiments/prepare.yaml` would with ``styles: true``."""
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


def fit_styled(kind: str, shards: Path, folder: Path) -> Path:
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
