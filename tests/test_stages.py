"""A stage in training: loss, metrics and guidance dropout."""

import math

import lightning.pytorch as pl
import pytest
import torch
from tiny_models import TINY, tiny_batch
from tiny_stages import FRAMES, clips, loader, tiny_stage, trainer

from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.conditioning import null_conditions
from hafm_lightning.modeling.token_scores import PairedBatch, score_names
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import (
    CoarseStage,
    FineStage,
    OptimizerConfig,
    SemanticStage,
)
from hafm_lightning.tokens import NULL

PATTERNS = ("flattened", "delay", "parallel", "nonautoregressive")


pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


# --- size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "millions"), [(SemanticStage, 38.6), (CoarseStage, 42.5), (FineStage, 44.1)])
def test_default_stages_have_the_papers_parameter_counts(kind, millions):
    with torch.device("meta"):
        stage = kind()
    assert round(sum(parameter.numel() for parameter in stage.parameters()) / 1e6, 1) == millions
    assert stage.model.config.backbone == BackboneConfig(layers=12, width=512, heads=8, feedforward=2048)


@pytest.mark.parametrize(
    ("kind", "frames", "prefix", "aligned"),
    [(SemanticStage, 500, 1000, 500), (CoarseStage, 750, 4000, 3000), (FineStage, 750, 6000, 3000)],
)
def test_default_stages_have_the_papers_sequence_steps_at_10_s(kind, frames, prefix, aligned):
    assert tiny_stage(kind).model.layout.plan(frames).steps == prefix
    assert tiny_stage(kind, conditioning="aligned").model.layout.plan(frames).steps == aligned


def test_conditions_can_be_chosen_by_name():
    stage = tiny_stage(conditions=["vocal_semantic", "vocal_acoustic", "instrumental_semantic"])
    assert [stream.name for stream in stage.model.layout.conditions][1] == "vocal_acoustic"
    assert tiny_stage(conditions=[]).model.layout.conditions == ()


# --- training ---------------------------------------------------------------------------------------------------


class Watch(pl.Callback):
    """Gradients after each backward pass, and the losses."""

    def __init__(self):
        self.missing, self.losses = [], []

    def on_after_backward(self, trainer, pl_module):
        self.missing += [name for name, parameter in pl_module.named_parameters() if parameter.grad is None]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_steps_reach_every_parameter_and_lower_the_loss(pattern, conditioning, tmp_path):
    pl.seed_everything(1)
    stage = CoarseStage(
        pattern, conditioning, backbone=TINY, optimizer=OptimizerConfig(learning_rate=0.02), guidance_dropout=0.0
    )
    watch = Watch()
    trainer(tmp_path, max_steps=24, callbacks=[watch]).fit(stage, loader(*[clips(stage)] * 24))
    assert watch.missing == []
    assert watch.losses[0] == pytest.approx(math.log(1024), abs=0.5)
    assert sum(watch.losses[-4:]) < sum(watch.losses[:4]) - 2
    assert stage.duration_s == pytest.approx(0.08)


def test_the_loss_is_the_mean_over_codebooks_and_metrics_are_logged(tmp_path):
    stage = tiny_stage(guidance_dropout=0.0)
    batch = clips(stage)
    true = batch["instrumental_coarse"]
    with torch.no_grad():
        log_probabilities = stage.model(batch.streams).double().log_softmax(-1)
    losses = -log_probabilities.gather(-1, true[..., None])[..., 0]
    run = trainer(tmp_path)
    run.fit(stage, loader(batch))
    logged = {name: float(value) for name, value in run.logged_metrics.items()}
    per_codebook = [float(losses[:, k].mean()) for k in range(4)]
    assert logged["train/loss"] == pytest.approx(sum(per_codebook) / 4, abs=1e-5)
    hits = log_probabilities.argmax(-1) == true
    for k in range(4):
        assert logged[f"train/loss_q{k}"] == pytest.approx(per_codebook[k], abs=1e-5)
        assert logged[f"train/accuracy_q{k}"] == pytest.approx(float(hits[:, k].double().mean()))
    assert set(logged) == {"train/loss", "train/accuracy", "train/accuracy_top10"} | {
        f"train/{name}_q{k}" for name in ("loss", "accuracy", "accuracy_top10") for k in range(4)
    }


def test_guidance_dropout_nulls_all_conditions_of_a_clip_at_the_same_length(tmp_path):
    stage = tiny_stage(guidance_dropout=0.3)
    batch = clips(stage, count=400)
    seen = []
    forward = stage.model.forward

    def watch(streams, codebook=None):
        seen.append(streams)
        return forward(streams, codebook)

    stage.model.forward = watch
    trainer(tmp_path).fit(stage, loader(batch))
    (streams,) = seen
    names = [stream.name for stream in stage.model.layout.conditions]
    nulled = torch.stack([(streams[name] == NULL).flatten(1).all(1) for name in names])
    intact = torch.stack([(streams[name] == batch[name]).flatten(1).all(1) for name in names])
    assert torch.equal(nulled[0], nulled[1])  # all conditions of a clip together
    assert torch.equal(nulled, ~intact)
    assert 0.2 < float(nulled[0].double().mean()) < 0.4
    assert all(streams[name].shape == batch[name].shape for name in names)
    assert torch.equal(streams["instrumental_coarse"], batch["instrumental_coarse"])


def test_validation_never_drops_conditions(tmp_path):
    stage = tiny_stage(guidance_dropout=0.9)
    batch = clips(stage, songs=1)
    run = trainer(tmp_path, limit_val_batches=1)
    first = run.validate(stage, loader(batch), verbose=False)
    assert first == run.validate(stage, loader(batch), verbose=False)


class Remembering(CoarseStage):
    """Keeps what each training batch was scored on."""

    def __init__(self, **settings):
        super().__init__(backbone=TINY, conditioning="aligned", **settings)
        self.seen = []
        self.forward_of_network, self.model.forward = self.model.forward, self.remember

    def remember(self, streams, codebook=None):
        logits = self.forward_of_network(streams, codebook)
        targets = streams[self.target] if codebook is None else streams[self.target][:, codebook : codebook + 1]
        self.seen.append((logits.detach(), targets, codebook or 0))
        return logits


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("pattern", ["flattened", "nonautoregressive"])
def test_rows_hold_the_scores_of_their_own_step(every, accumulate, pattern, tmp_path):
    """All scores of a row are means over all clips of that optimizer step, also behind the end of an epoch."""
    from hafm_lightning.callbacks import CsvLog
    from hafm_lightning.callbacks.loggers import read_rows

    pl.seed_everything(2)
    stage = Remembering(pattern=pattern, optimizer=OptimizerConfig(learning_rate=0.02))
    log = CsvLog(str(tmp_path))
    settings = {"max_steps": 9, "accumulate_grad_batches": accumulate, "log_every_n_steps": every}
    batches = [tiny_batch(stage.model.layout, FRAMES[CoarseStage], 3, seed) for seed in range(4)]
    trainer(tmp_path, logger=log, **settings).fit(stage, loader(*batches))
    rows = read_rows(log.path)
    assert [int(row["step"]) for row in rows] == list(range(every - 1, 9, every))
    for row in rows:
        step = int(row["step"])
        scores = {name: [] for name in score_names(4)}
        for logits, targets, first in stage.seen[step * accumulate : (step + 1) * accumulate]:
            for k in range(targets.shape[1]):
                loss = torch.nn.functional.cross_entropy(logits[:, k].transpose(1, 2), targets[:, k], reduction="none")
                top = logits[:, k].topk(10).indices == targets[:, k, :, None]
                values = {"loss": loss, "accuracy": top[..., 0], "accuracy_top10": top.any(-1)}
                for name, value in values.items():
                    scores[name] += value.double().flatten().tolist()
                    scores[f"{name}_q{first + k}"] += value.double().flatten().tolist()
        expected = {f"train/{name}": sum(v) / len(v) if v else math.nan for name, v in scores.items()}
        found = {name: float(row[name]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("calls_super", [True, False])
def test_a_training_step_descends_the_loss_that_a_subclass_defines(calls_super, every, tmp_path):
    class Shrinking(CoarseStage):
        def training_loss(self, batch):
            size = sum(parameter.square().sum() for parameter in self.parameters())
            return 3 * super().training_loss(batch) if calls_super else size

    stage = Shrinking(backbone=TINY, guidance_dropout=0.0)
    batch = tiny_batch(stage.model.layout, FRAMES[CoarseStage], 3)
    expected = stage.training_loss(batch)
    gradients = torch.autograd.grad(expected, list(stage.parameters()))
    watch = Gradients()
    run = trainer(tmp_path, callbacks=[watch], log_every_n_steps=every)
    run.fit(stage, loader(batch))
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    for found, true in zip(watch.seen, gradients, strict=True):
        torch.testing.assert_close(found, true)
    scored = "train/accuracy" in run.callback_metrics
    assert scored == (calls_super and every == 1), "scores are of what the loss was computed from, or absent"


class Gradients(pl.Callback):
    """The gradients before the first step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen = [parameter.grad.clone() for parameter in pl_module.parameters()]


# --- evaluation -------------------------------------------------------------------------------------------------


@torch.no_grad()
def slow_losses(stage, batch, streams):
    """(loss, accuracy, top-10 accuracy) of each clip, ``[B, K]`` each, from log-probabilities and sorting."""
    true = batch[stage.target]
    log_probabilities = stage.model({**streams, stage.target: true}).double().log_softmax(-1)
    order = log_probabilities.argsort(-1, descending=True)
    rank = (order == true[..., None]).double().argmax(-1)
    loss = -log_probabilities.gather(-1, true[..., None])[..., 0]
    return [value.double().mean(-1) for value in (loss, rank == 0, rank < 10)]


def next_song(clip_ids):
    """For each clip the clip of the next song with the same number there, found by going through all clips."""
    found = []
    for index, clip in enumerate(clip_ids):
        song = clip.split("@")[0]
        number = [other.split("@")[0] for other in clip_ids[:index]].count(song)
        later = sorted({c.split("@")[0] for c in clip_ids if c.split("@")[0] > song})
        following = later[0] if later else min(c.split("@")[0] for c in clip_ids)
        clips_there = [i for i, c in enumerate(clip_ids) if c.split("@")[0] == following]
        found.append(clips_there[number % len(clips_there)])
    return found


@pytest.mark.parametrize("kind", [SemanticStage, CoarseStage])
def test_validation_means_are_over_clips_however_they_are_batched(kind, tmp_path):
    stage = tiny_stage(kind).eval()
    batches = [clips(stage, 4, seed=1, songs=2), clips(stage, 1, seed=2), clips(stage, 3, seed=3, songs=3)]
    run = trainer(tmp_path, limit_val_batches=3)
    (found,) = run.validate(stage, loader(*batches), verbose=False)
    names = [stream.name for stream in stage.model.layout.conditions]
    true, null, other, vocal, paired = [], [], [], [], []
    for batch in batches:
        true.append(slow_losses(stage, batch, batch.streams))
        null.append(slow_losses(stage, batch, null_conditions(batch.streams, stage.model.layout.conditions))[0])
        if len({clip.split("@")[0] for clip in batch.clip_ids}) > 1:  # a batch of one song has no other song
            swapped = {**batch.streams, **{name: batch[name][next_song(batch.clip_ids)] for name in names}}
            other.append(slow_losses(stage, batch, swapped)[0])
            sung = {**batch.streams, "vocal_semantic": swapped["vocal_semantic"]}
            vocal.append(slow_losses(stage, batch, sung)[0])
            paired.append(true[-1][0])
    loss, accuracy, top = (torch.cat([clip[number] for clip in true]) for number in range(3))
    null, other, paired = torch.cat(null), torch.cat(other), torch.cat(paired)
    assert len(loss) == 8
    assert len(other) == 7
    expected = {
        "val/loss": loss.mean(),
        "val/accuracy": accuracy.mean(),
        "val/accuracy_top10": top.mean(),
        "val/loss_null": null.mean(),
        "val/conditioning_gain": null.mean() - loss.mean(),
        "val/loss_other": other.mean(),
        "val/other_song_gap": other.mean() - paired.mean(),
        "val/other_vocal_gap": torch.cat(vocal).mean() - paired.mean(),
    }
    for k in range(loss.shape[1] if kind is CoarseStage else 0):
        for name, value in (("loss", loss), ("accuracy", accuracy), ("accuracy_top10", top)):
            expected[f"val/{name}_q{k}"] = value[:, k].mean()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=2e-5), name


def test_the_two_gains_of_a_stage_are_told_apart(tmp_path):
    """Both were called "other song", and differ by a factor of ten for a coarse stage."""
    coarse, fine = tiny_stage(CoarseStage).eval(), tiny_stage(FineStage).eval()
    found = {}
    for stage in (coarse, fine):
        run = trainer(tmp_path, limit_val_batches=1)
        (found[type(stage)],) = run.validate(stage, loader(clips(stage, 4, seed=1, songs=2)), verbose=False)
    assert found[CoarseStage]["val/other_song_gap"] != found[CoarseStage]["val/other_vocal_gap"]
    assert "val/other_song_gap" in found[FineStage]
    assert "val/other_vocal_gap" not in found[FineStage]


def test_a_batch_that_brings_its_other_songs_is_scored_with_those(tmp_path):
    stage = tiny_stage().eval()
    batch, other = clips(stage, 3, seed=1, songs=1), clips(stage, 3, seed=2, songs=1)
    pairs = PairedBatch(batch.streams, batch.clip_ids, other.streams)
    (found,) = trainer(tmp_path, limit_val_batches=1).validate(stage, loader(pairs), verbose=False)
    names = [stream.name for stream in stage.model.layout.conditions]
    swapped = {**batch.streams, **{name: other[name] for name in names}}
    expected = slow_losses(stage, batch, swapped)[0].mean()
    assert found["val/loss_other"] == pytest.approx(float(expected), abs=2e-5)


def test_a_nan_in_one_batch_is_not_averaged_away(tmp_path):
    stage = tiny_stage(SemanticStage)
    first, second = clips(stage, seed=1), clips(stage, seed=2)
    only_second = next(iter(set(second[stage.target].flatten().tolist()) - set(first[stage.target].flatten().tolist())))
    second[stage.target][0, 0, 0] = only_second
    with torch.no_grad():
        stage.model.target.weight[0, only_second] = math.nan
    (found,) = trainer(tmp_path, limit_val_batches=2).validate(stage, loader(first, second), verbose=False)
    assert math.isnan(found["val/loss"])


class UnevenData(pl.LightningDataModule):
    """Songs on the first rank, one song on the second, whose clips have no other to be swapped with."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def val_dataloader(self):
        ranks = self.trainer.world_size
        return loader(*self.batches[self.trainer.global_rank :: ranks])


def test_two_processes_log_the_means_of_one_even_where_a_rank_has_no_other_clip(tmp_path):
    stage = tiny_stage().eval()
    data = UnevenData([clips(stage, 3, seed=1), clips(stage, 2, seed=2, songs=1)])
    (one,) = trainer(tmp_path, limit_val_batches=2).validate(stage, datamodule=data, verbose=False)
    two_processes = trainer(
        tmp_path, limit_val_batches=1, devices=2, strategy="ddp_spawn", use_distributed_sampler=False
    )
    (two,) = two_processes.validate(tiny_stage().eval(), datamodule=data, verbose=False)
    assert set(two) == set(one)
    assert two == pytest.approx(one, abs=1e-6)


def test_prediction_gives_each_clip_its_loss(tmp_path):
    stage = tiny_stage().eval()
    batch = clips(stage, 3)
    (result,) = trainer(tmp_path).predict(stage, loader(batch))
    assert result["clip_ids"] == batch.clip_ids
    nulls = null_conditions(batch.streams, stage.model.layout.conditions)
    for name, streams in (("loss", batch.streams), ("loss_null", nulls)):
        expected = slow_losses(stage, batch, streams)[0].mean(1)
        torch.testing.assert_close(result[name].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_stage_without_conditions_logs_no_gain(tmp_path):
    stage = tiny_stage(conditions=[])
    run = trainer(tmp_path, limit_val_batches=1)
    (found,) = run.validate(stage, loader(clips(stage)), verbose=False)
    assert "val/loss" in found
    assert not {"val/loss_null", "val/conditioning_gain", "val/loss_other"} & set(found)


def test_a_nonautoregressive_stage_trains_one_codebook_a_step_and_validates_all(tmp_path):
    stage = tiny_stage(pattern="nonautoregressive")
    run = trainer(tmp_path, max_steps=1)
    run.fit(stage, loader(clips(stage)))
    losses = [float(run.logged_metrics[f"train/loss_q{k}"]) for k in range(4)]
    assert sum(math.isfinite(loss) for loss in losses) == 1, "NaN for the codebooks that were not drawn"
    (found,) = trainer(tmp_path, limit_val_batches=1).validate(stage, loader(clips(stage)), verbose=False)
    assert {f"val/loss_q{k}" for k in range(4)} <= set(found)


def test_an_impossible_guidance_dropout_is_refused():
    for wrong in (-0.1, 1.0):
        with pytest.raises(RequestError, match="guidance_dropout"):
            CoarseStage(backbone=TINY, guidance_dropout=wrong)
