"""What the tries damage: a small corpus, tokenizers, shards, checkpoints, a model, and what each command made of them.

Everything lies in one folder under relative names, so that a copy of it works like the original.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import yaml
from children import Bounds, run
from tiny_band import make_band, sing, tiny_tokenizers
from tiny_corpora import write_musdb
from tiny_preparation import tiny_values
from tiny_shards import write_tiny_shards
from tiny_study import make_tiny_study

from hafm_lightning.audio import write_audio
from hafm_lightning.sealing import seal

RATE_HZ = 24_000
STEPS = 4
ROLES = ("semantic", "coarse", "fine")
BACKBONE = {"layers": 1, "width": 16, "heads": 2, "feedforward": 24}
STOPPED = "stopped"
"""Folder of a run that was stopped after half of its steps."""
BUILD_BOUNDS = Bounds(seconds=900)


def fit_values() -> dict[str, object]:
    """A training run of a few steps, validated and saved on the way."""
    return {
        "seed_everything": 3,
        "model": {
            "class_path": "hafm_lightning.stages.CoarseStage",
            "init_args": {
                "backbone": BACKBONE,
                "conditioning": "aligned",
                "pattern": "delay",
                "guidance_dropout": 0.1,
                "optimizer": {"learning_rate": 0.01, "weight_decay": 0.01, "warmup_steps": 2},
            },
        },
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": "shards", "batch_size": 3, "seed": 5, "crop_s": 0.2},
        },
        "checkpoints": {"every_steps": 2, "keep": 2},
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "devices": 1,
            "gradient_clip_val": 1.0,
            "accumulate_grad_batches": 1,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": "logs",
        },
    }


def evaluate_values() -> dict[str, object]:
    """A card of two rows that needs no model."""
    return {
        "output": "card",
        "root": "corpus",
        "split": "test",
        "protocols": [{"name": "short", "duration_s": 1.0, "clips": 4, "active": 0.2}],
        "tokenizers": "tokenizers",
        "systems": ["ground_truth", "random"],
        "metrics": ["fad", "chroma", "truth"],
        "embeddings": [{"name": "logmel"}],
        "statistics": {"logmel": "statistics.npz"},
        "players": "ground_truth",
        "pairing": "next",
        "seed": 0,
        "device": "cpu",
    }


def listening_values() -> dict[str, object]:
    """A study of two systems that need no model."""
    shared = {key: value for key, value in evaluate_values().items() if key not in ("metrics", "statistics")}
    study = {"folder": "built", "systems": ["ground_truth", "random"], "same": 1, "silence": 1, "seed": 7}
    return shared | {"study": study}


def prepare_values() -> dict[str, object]:
    """A preparation with tokenizers that are there."""
    corpora = [{"kind": "MusdbHQ", "path": "corpus", "allow_partial": True}]
    changes = {"tokenizers": {"folder": "tokenizers"}, "clips_per_shard": 2}
    return tiny_values(Path("prepared"), corpora, **changes)


def write_yaml(path: Path, values: dict[str, object]) -> None:
    """A configuration."""
    path.write_text(yaml.safe_dump(values))


def write_materials() -> int:
    """Into the working folder: everything that no command makes. Called in a child of its own."""
    write_musdb(Path("corpus"), train=3, test=3, seconds=5.0)
    pair = tiny_tokenizers(Path("tokenizers"))
    make_band(Path("stages"), Path("tokenizers"), pair, "live")
    for role in ROLES:
        seal(Path("stages") / f"{role}.ckpt")  # as a run writes them
    write_tiny_shards(Path("shards"))
    for seed, name in enumerate(("one", "two")):
        write_audio(Path("vocals") / f"{name}.wav", sing(1.2, RATE_HZ, seed=seed))
    write_yaml(Path("fit.yaml"), fit_values())
    write_yaml(Path("evaluate.yaml"), evaluate_values())
    write_yaml(Path("listening.yaml"), listening_values())
    write_yaml(Path("prepare.yaml"), prepare_values())
    Path("study").mkdir()
    _write_votes(Path("study"))
    _write_statistics(Path("statistics.npz"))
    np.save("centroids.npy", np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    return 0


def _write_votes(folder: Path) -> None:
    from hafm_lightning.listening.vote import Vote
    from hafm_lightning.listening.votes import VoteStore

    study, key = make_tiny_study(folder)
    generator = random.Random(0)
    with VoteStore.open(folder / "votes.sqlite", study.study_id) as store:
        for voter in ("anna", "bela", "judge:x"):
            for trial in key.assignments:
                choices = {criterion: generator.choice(("A", "B", "tie")) for criterion in study.criteria}
                store.add(Vote(voter, trial, generator.choice(("AB", "BA")), choices, 3.0, 5.0))


def _write_statistics(path: Path) -> None:
    from hafm_lightning.evaluation.distances.frechet import IDENTITY_KEY, GaussianStatistics
    from hafm_lightning.evaluation.embeddings.log_mel import LogMelEmbedding

    embedding = LogMelEmbedding()
    embedding.level = "loudness"  # as `evaluate` measures by default
    rows = np.random.default_rng(0).standard_normal((4 * embedding.dimensions, embedding.dimensions))
    provenance = {"embedding": "logmel", IDENTITY_KEY: embedding.identity, "clip_s": 1.0, "set": "noise"}
    GaussianStatistics.from_rows(rows, provenance).save(path)


CHECKPOINTS = [word for role in ROLES for word in (f"--{role}", f"stages/{role}.ckpt")]
MADE_BY: tuple[tuple[str, ...], ...] = (
    ("export", *CHECKPOINTS, "--tokenizers", "tokenizers", "--out", "model"),
    ("generate", "--vocal", "vocals/one.wav", "--model", "model", "--out", "take", "--seed", "3"),
    ("fit", "--config", "fit.yaml", "--trainer.max_steps", str(STEPS // 2), "--trainer.default_root_dir", STOPPED),
    ("prepare", "--config", "prepare.yaml"),
    ("evaluate", "--config", "evaluate.yaml"),
)
"""Commands that make the rest, in order."""


def build(folder: Path) -> None:
    """Fill an empty folder; RuntimeError with the output of the step that failed."""
    inside = folder / "inside"
    inside.mkdir(parents=True)
    for number, step in enumerate((write_materials, *MADE_BY)):
        ending = run(step, inside, folder / f"build-{number}", BUILD_BOUNDS)
        if ending.code != 0:
            raise RuntimeError(f"the workshop could not be built: {step}\n{ending.out}\n{ending.err}")
