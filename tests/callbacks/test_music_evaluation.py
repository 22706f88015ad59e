"""The callback on a toy band: equal losses with and without it, one number on 1 and 2 processes, files and tables."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.multiprocessing
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from tiny_music import CLIP_S, TinyMusic, tiny_stage

from hafm_lightning.audio import read_audio
from hafm_lightning.callbacks.music_evaluation import MusicEvaluation
from hafm_lightning.data_modules import TokenShards
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance
from hafm_lightning.evaluation.embeddings import EmbeddingSource, load_embedding
from hafm_lightning.evaluation.protocol.set_scores import embedding_rows
from hafm_lightning.evaluation.segments import SegmentSettings, load_clip, select_segments, tokenize_clips
from hafm_lightning.evaluation.stage import SOUNDS, write_target
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.stages import Stage

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GREEDY = SamplingOptions(guidance=1.0, temperature=0.0)


class Losses(Callback):
    """Every training loss, and the generators' states when training ends."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.generators: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.callback_metrics["train/loss"].item())

    def on_train_end(self, *_: Any) -> None:
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global generator is the point
        self.generators = [torch.get_rng_state().tolist(), numpy_state, random.getstate()]


def callback(music: TinyMusic, **settings: Any) -> MusicEvaluation:
    defaults = {"clips": 5, "duration_s": CLIP_S, "audio_clips": 0, "batch_clips": 2, "active": 0.3}
    return MusicEvaluation(str(music.songs), **{**defaults, **settings})


def train(music: TinyMusic, stage: Stage, folder: Path, callbacks: list[Callback], **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **{"logger": CSVLogger(folder, name="", version=""), **settings},
    )
    trainer.fit(stage, datamodule=TokenShards(str(music.shards), batch_size=2))
    return trainer


def test_losses_with_and_without_the_callback_are_equal_bit_for_bit(music: TinyMusic, tmp_path: Path) -> None:
    runs = []
    for name, extra in (("without", []), ("with", [callback(music)])):
        pl.seed_everything(7)
        losses = Losses()
        stage = tiny_stage("coarse", guidance_dropout=0.5)
        trainer = train(music, stage, tmp_path / name, [losses, *extra], max_epochs=3)
        runs.append((losses.seen, losses.generators, {k: v.clone() for k, v in stage.state_dict().items()}))
        assert ("music/fad_logmel" in trainer.callback_metrics) is bool(extra)
    assert len(runs[0][0]) == 9
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == runs[1][1]
    for key, value in runs[0][2].items():
        torch.testing.assert_close(value, runs[1][2][key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_logged_numbers_equal_a_computation_by_hand(music: TinyMusic, tmp_path: Path, name: str) -> None:
    stage = tiny_stage(name, pattern="delay" if name == "coarse" else "nonautoregressive")
    trainer = train(music, stage, tmp_path, [callback(music, sampling=GREEDY)], max_epochs=1)
    found = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("music/")}

    selection = select_segments(SegmentSettings(str(music.songs), "test", CLIP_S, clips=5, active=0.3))
    clips = [load_clip(segment, music.tokenizers) for segment in selection.segments]
    batch = tokenize_clips(clips, music.tokenizers)
    stage.eval()
    with torch.inference_mode():
        written = write_target(stage.model, batch, GREEDY, [0] * 5, batch_clips=5)
        logits = stage.model(batch.streams)
    codes = written if name == "coarse" else torch.cat((batch["instrumental_coarse"], written), dim=1)
    embedding = load_embedding(EmbeddingSource())
    sounds = [music.tokenizers.acoustic.decode(clip[None])[0].numpy() for clip in codes]
    rows = [embedding_rows(embedding, part, 24000) for part in (sounds, [clip.accompaniment for clip in clips])]
    expected = frechet_distance(*(GaussianStatistics.from_rows(part) for part in rows))
    assert found["music/fad_logmel"] == pytest.approx(expected, rel=1e-4)
    target = batch[stage.target]
    assert found["music/accuracy"] == pytest.approx((logits.argmax(-1) == target).double().mean().item(), abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))
    assert found["music/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (found["music/clips"], found["music/failed"]) == (5, 0)
    assert 0 < found["music/fad_logmel_codec"] < found["music/fad_logmel"]
    assert found["music/accuracy_q0"] <= 1
    assert found["music/seconds"] > 0


def test_stages_that_hear_more_of_the_vocal_are_measured_too(music: TinyMusic, tmp_path: Path) -> None:
    conditions = ["vocal_semantic", "vocal_acoustic", "instrumental_semantic", "style"]
    evaluation, stage = callback(music), tiny_stage("coarse", conditions=conditions)
    trainer = pl.Trainer(accelerator="cpu", logger=CSVLogger(tmp_path), enable_checkpointing=False)
    trainer.strategy.connect(stage)
    stage.tokenizers_folder = str(music.tokenizers_folder)
    values = evaluation._measure(trainer, stage, evaluation._prepare(trainer, stage))
    assert values["fad_logmel"] > 0
    assert evaluation._material is not None
    assert evaluation._material.batch is not None
    assert set(conditions) <= set(evaluation._material.batch.streams)


def test_a_semantic_stage_alone_reports_no_fad(music: TinyMusic, tmp_path: Path) -> None:
    trainer = train(music, tiny_stage("semantic"), tmp_path, [callback(music)], max_epochs=1)
    names = {key for key in trainer.callback_metrics if key.startswith("music/")}
    assert "music/semantic_centroid_frechet" in names
    assert not any("fad" in name for name in names)


def saved(stage: Stage, music: TinyMusic, path: Path) -> str:
    stage.tokenizers = music.tokenizers.identities()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0, barebones=True)
    trainer.strategy.connect(stage)
    trainer.save_checkpoint(path)
    return str(path)


def test_a_semantic_stage_is_heard_through_later_checkpoints(music: TinyMusic, tmp_path: Path) -> None:
    coarse = saved(tiny_stage("coarse"), music, tmp_path / "c.ckpt")
    fine = saved(tiny_stage("fine"), music, tmp_path / "f.ckpt")
    for later in ({"coarse": coarse}, {"coarse": coarse, "fine": fine}):
        trainer = train(music, tiny_stage("semantic"), tmp_path / "run", [callback(music, **later)], max_epochs=1)
        assert trainer.callback_metrics["music/fad_logmel"] > 0
    with pytest.raises(RequestError, match="a fine checkpoint needs a coarse one"):
        train(music, tiny_stage("semantic"), tmp_path / "run", [callback(music, fine=fine)], max_epochs=1)


def test_a_semantic_stage_is_heard_through_the_runs_beside_it(music: TinyMusic, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "coarse" / "run-001" / "checkpoints"
    folder.mkdir(parents=True)
    saved(tiny_stage("coarse"), music, folder / "best.ckpt")
    broken = tmp_path / "logs" / "fine" / "run-000" / "checkpoints" / "best.ckpt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"cut short")
    run = {"default_root_dir": str(tmp_path / "logs" / "semantic" / "run-000"), "max_epochs": 1}
    trainer = train(music, tiny_stage("semantic"), tmp_path / "a", [callback(music)], **run)
    assert trainer.callback_metrics["music/fad_logmel"] > 0
    protocol = json.loads((tmp_path / "a" / "music" / "protocol.json").read_text())
    assert protocol["heard_through"] == {"coarse": str(folder / "best.ckpt")}
    assert "33 clips of 3 s" in protocol["paper"]
    trainer = train(music, tiny_stage("semantic"), tmp_path / "b", [callback(music, heard_through="named")], **run)
    assert "music/fad_logmel" not in trainer.callback_metrics


def test_sound_and_spectrograms_are_kept_in_the_log_folder(music: TinyMusic, tmp_path: Path) -> None:
    train(music, tiny_stage("coarse"), tmp_path, [callback(music, audio_clips=2)], max_epochs=1)
    (step,) = (tmp_path / "music").glob("step-*")
    assert step.name == "step-00000003"
    kinds = sorted(path.name.split(".", 2)[-1] for path in step.iterdir())
    assert kinds == sorted([*(f"{name}.wav" for name in SOUNDS), "png"] * 2)
    for path in step.glob("*.wav"):
        audio = read_audio(path)
        assert (audio.rate_hz, audio.samples.shape[1]) == (24000, 24000)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in step.glob("*.png"))


def test_a_run_says_what_its_numbers_belong_to(music: TinyMusic, tmp_path: Path) -> None:
    train(music, tiny_stage("coarse"), tmp_path, [callback(music, sampling=GREEDY)], max_epochs=1)
    protocol = json.loads((tmp_path / "music" / "protocol.json").read_text())
    chosen = select_segments(SegmentSettings(str(music.songs), "test", CLIP_S, clips=5, active=0.3))
    assert protocol["segments"]["clips"] == [segment.clip_id for segment in chosen.segments]
    assert protocol["segments"]["duration_s"] == CLIP_S
    assert protocol["embeddings"][0]["embedding_identity"] == load_embedding(EmbeddingSource()).identity
    assert protocol["tokenizers"] == music.tokenizers.identities()
    assert protocol["sampling"]["temperature"] == 0.0


def test_weights_and_biases_get_sounds_and_pictures_that_lie_in_the_run_folder(
    music: TinyMusic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    train(music, tiny_stage("coarse"), tmp_path, [callback(music, audio_clips=1)], max_epochs=1, logger=logger)
    logger.experiment.finish()
    (files,) = tmp_path.glob("wandb/offline-*/files/media")
    sounds = sorted(path.parent.name + "/" + path.name.split("_")[0] for path in files.glob("audio/music/*.wav"))
    assert sounds == ["music/generated", "music/mix", "music/truth", "music/vocal"]
    for name in ("vocal", "generated", "truth", "mix"):
        (logged,), (kept,) = files.glob(f"audio/music/{name}_*.wav"), tmp_path.glob(f"music/step-*/*.{name}.wav")
        assert logged.read_bytes() == kept.read_bytes()
    assert len(list(files.glob("images/music/spectrograms_*.png"))) == 1


def test_every_n_validations_survives_a_resume(music: TinyMusic, tmp_path: Path) -> None:
    evaluation = callback(music, every_n_validations=2, audio_clips=1)
    train(music, tiny_stage("coarse"), tmp_path, [evaluation], max_epochs=3)
    assert len(list((tmp_path / "music").glob("step-*"))) == 2  # the first and the third
    again = callback(music, every_n_validations=2)
    again.load_state_dict(evaluation.state_dict())
    assert again.validations == 3


def test_wrong_paths_end_the_run_before_training(music: TinyMusic, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        train(music, tiny_stage("coarse"), tmp_path, [MusicEvaluation(str(tmp_path / "absent"))])
    with pytest.raises(RequestError, match="clips, every_n_validations and batch_clips start at 1"):
        callback(music, clips=0)
    stage = tiny_stage("coarse")
    stage.tokenizers = {"semantic": {"sha256": "other"}, "acoustic": {}}
    with pytest.raises(RequestError, match="this checkpoint was trained with a different tokenizer than this data"):
        train(music, stage, tmp_path, [callback(music)])


def _validate_on(rank: int, world: int, songs: str, shards: str, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HAFM_QUIET": "1"}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.manual_seed(3)
    stage = tiny_stage("coarse")
    evaluation = MusicEvaluation(songs, clips=5, duration_s=CLIP_S, audio_clips=1, active=0.3)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[evaluation],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.validate(stage, datamodule=TokenShards(shards, batch_size=2), verbose=False)
    found = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("music/")}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))


def test_two_processes_log_the_numbers_of_one(music: TinyMusic, tmp_path: Path) -> None:
    """Five clips on two processes: three and two."""
    arguments = (str(music.songs), str(music.shards))
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        torch.multiprocessing.start_processes(
            _validate_on,
            args=(world, *arguments, str(folder), 29512 + os.getpid() % 1000),
            nprocs=world,
            start_method="fork",
        )
    alone = json.loads((tmp_path / "1" / "rank0.json").read_text())
    for rank in range(2):
        shared = json.loads((tmp_path / "2" / f"rank{rank}.json").read_text())
        assert set(shared) == set(alone)
        for name in set(alone) - {"music/seconds"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-5), name


def test_without_a_root_nothing_is_measured_and_one_line_says_so(caplog):
    callback = MusicEvaluation(root=None)
    with caplog.at_level("INFO"):
        callback.on_fit_start(None, None)
    assert "MUSDB18_HQ" in caplog.text
    callback.on_validation_epoch_end(SimpleNamespace(sanity_checking=False), None)
    assert callback.validations == 0
