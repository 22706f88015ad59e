"""The guard: NaN is stopped before the step, with names, and nothing poisoned is saved."""

import re

import lightning.pytorch as pl
import pytest
import torch
from fits import log_of, write_config
from resume_child import finish, start
from tiny_shards import write_tiny_shards
from torch import nn

from hafm_lightning.callbacks import AtomicCheckpointIO, Checkpoints, ExactResume, NonFiniteError, NonFiniteGuard
from hafm_lightning.data_modules import TokenShards


class Poisoned(pl.LightningModule):
    """A step whose loss or gradient is not finite from a given step on."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.at, self.what, self.clips = at, what, []

    def training_step(self, batch, index):
        self.clips.append(batch.clip_ids)
        loss = self.weight.square().sum()
        if self.global_step >= self.at:
            if self.what == "loss is nan":
                loss = loss * torch.nan
            elif self.what == "loss is infinite":
                loss = loss + torch.inf
            else:  # the square root's slope at 0 is infinite, its value is not
                loss = loss + (self.weight - self.weight.detach()).sum().abs().sqrt()
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.fixture
def root(tmp_path):
    return write_tiny_shards(tmp_path / "shards", train=(8,))


def trainer_of(tmp_path, guard, **settings):
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        plugins=[AtomicCheckpointIO()],
        callbacks=[ExactResume(), guard, Checkpoints(every_steps=1, keep=9, monitor=None)],
        **settings,
    )


@pytest.mark.parametrize("what", ["loss is nan", "loss is infinite", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_run_stops_before_the_step_and_names_the_clips(root, tmp_path, what, accumulate):
    stage = Poisoned(at=2, what=what)
    trainer = trainer_of(tmp_path, NonFiniteGuard(), accumulate_grad_batches=accumulate)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit(stage, datamodule=TokenShards(str(root), batch_size=2))
    message = str(error.value)
    assert message.startswith("step 2: the " + ("loss" if "loss" in what else "gradient"))
    guilty = {clip for clips in stage.clips[-accumulate:] for clip in clips}
    assert set(re.findall(r"train \d-\d@0.00", message)) == guilty
    assert trainer.global_step == 2, "the step was taken"
    assert torch.isfinite(stage.weight).all()
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["step-00000001.ckpt", "step-00000002.ckpt"]


def test_weights_that_are_not_finite_are_not_saved(root, tmp_path):
    class Overflowing(Poisoned):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=torch.finfo(torch.float32).max)

    stage = Overflowing(at=99, what="")
    with pytest.raises(NonFiniteError, match="weight is not finite"):
        trainer_of(tmp_path, NonFiniteGuard()).fit(stage, datamodule=TokenShards(str(root), batch_size=2))
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


def test_steps_that_the_loss_scaler_skips_are_no_fault_until_they_pile_up(root, tmp_path):
    class Skipping(torch.optim.SGD):
        def step(self, closure):
            return closure()

    class Scaled(Poisoned):
        def configure_optimizers(self):
            return Skipping(self.parameters(), lr=1.0)

    stage = Scaled(at=0, what="gradient")
    trainer = trainer_of(tmp_path, guard := NonFiniteGuard(skipped_steps=3))
    trainer.precision_plugin.scaler = object()  # what the guard looks for under 16-mixed
    with pytest.raises(NonFiniteError, match="3 times in a row"):
        trainer.fit(stage, datamodule=TokenShards(str(root), batch_size=2))
    assert guard._skipped == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_norm_is_logged_as_an_independent_sum_says(root, tmp_path, accumulate):
    class Walking(Poisoned):
        def training_step(self, batch, index):
            return super().training_step(batch, index) * (1 + index)  # another gradient for each batch of a step

    class Watching(pl.Callback):
        def __init__(self):
            self.norms, self.weights = [], []

        def on_train_batch_start(self, trainer, module, batch, index):
            self.weights.append((1 + index) * module.weight.detach().clone())

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.fit_loop._should_accumulate():
                return
            logged = float(trainer.callback_metrics["train/gradient_norm"])
            mean = torch.stack(self.weights[-accumulate:]).mul(2).mean(0)  # of the gradients 2 w of w^2
            self.norms.append((logged, float(mean.pow(2).sum().sqrt())))

    trainer = trainer_of(tmp_path, NonFiniteGuard(), accumulate_grad_batches=accumulate)
    trainer.callbacks.append(watching := Watching())
    trainer.fit(Walking(at=99, what=""), datamodule=TokenShards(str(root), batch_size=2))
    assert len(watching.norms) == 6
    for logged, expected in watching.norms:
        assert logged == pytest.approx(expected)


def test_two_processes_stop_together_and_name_the_guilty_one(tmp_path):
    write_tiny_shards(tmp_path / "shards", train=(5, 4), validation=(3, 2))
    config = write_config(tmp_path / "run", data__batch_size=1)
    text = config.read_text().replace("resume_child.ToyStage", "resume_child.OneBadProcess")
    config.write_text(text)
    codes = finish(start(["fit", "--config", str(config)], config.parent / "run", 2))
    assert codes[0] not in (0, 143)
    log = log_of(config)
    assert "the loss is not finite" in log
    assert "clips: process 1: train" in log
    assert "process 0:" not in log
