"""Averaged weights: validated and saved, trained beside, and taken up again exactly."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tiny_shards import write_tiny_shards
from tiny_trainer import Line, trainer_of

from hafm_lightning.callbacks import EMA, Checkpoints
from hafm_lightning.callbacks.ema import TRAINING_WEIGHTS
from hafm_lightning.data_modules import TokenShards
from hafm_lightning.errors import RequestError


@pytest.fixture
def data(tmp_path):
    return TokenShards(str(write_tiny_shards(tmp_path / "shards", train=(8,))), batch_size=2)


def test_the_average_is_validated_and_saved_and_the_weights_train_on(data, tmp_path):
    stage = Line()
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer_of(tmp_path, EMA(decay=0.6), Checkpoints(every_steps=5, keep=9), **settings).fit(stage, datamodule=data)

    plain = [0.8 ** (step + 1) for step in range(8)]  # gradient 2 w, rate 0.1
    assert stage.walked == pytest.approx(plain, rel=1e-5), "averaging must not change the training"
    average, averages = 1.0, []
    for update, weight in enumerate(plain):
        decay = min(0.6, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    assert stage.validated[::3] == pytest.approx(averages[1::2], rel=1e-5)  # three validation batches each time
    saved = torch.load(tmp_path / "checkpoints" / "step-00000005.ckpt", weights_only=True)
    assert float(saved["state_dict"]["weight"]) == pytest.approx(averages[4], rel=1e-5)
    assert float(saved[TRAINING_WEIGHTS]["weight"]) == pytest.approx(plain[4], rel=1e-5)
    best = torch.load(
        tmp_path / "checkpoints" / "best.ckpt", weights_only=True
    )  # saved while the average was swapped in
    assert float(best["state_dict"]["weight"]) == pytest.approx(averages[7], rel=1e-5)
    assert float(best[TRAINING_WEIGHTS]["weight"]) == pytest.approx(plain[7], rel=1e-5)


def test_a_run_with_averages_is_not_continued_without(data, tmp_path):
    trainer_of(tmp_path, EMA(), Checkpoints(monitor=None), max_steps=2).fit(Line(), datamodule=data)
    checkpoint = tmp_path / "checkpoints" / "step-00000002.ckpt"
    with pytest.raises(RequestError, match=r"add hafm_lightning\.callbacks\.EMA"):
        trainer_of(tmp_path, max_steps=4).fit(Line(), datamodule=data, ckpt_path=checkpoint)
    for settings in ({"decay": 1.0}, {"every_steps": 0}):
        with pytest.raises(RequestError):
            EMA(**settings)


class SaveWhileValidating(pl.Callback):
    def on_validation_batch_start(self, trainer, *_):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/middle-{trainer.global_step}.ckpt", weights_only=False)


def test_weights_and_average_are_not_mixed_up_whenever_they_are_saved(data, tmp_path):
    """In the middle of a validation the model holds the average, at the end of training the weights."""
    stage, settings = Line(), {"val_check_interval": 4, "check_val_every_n_epoch": None}
    keeper = Checkpoints(every_steps=3, keep=9, monitor=None)
    trainer_of(tmp_path, EMA(decay=0.6), keeper, SaveWhileValidating(), **settings).fit(stage, datamodule=data)
    middle, end = tmp_path / "middle-4.ckpt", tmp_path / "checkpoints" / "step-00000008.ckpt"
    for path, step in ((middle, 4), (end, 8)):
        saved = torch.load(path, weights_only=True)
        assert float(saved[TRAINING_WEIGHTS]["weight"]) == pytest.approx(0.8**step, rel=1e-5)
        assert float(saved["state_dict"]["weight"]) > 1.05 * 0.8**step, "the average lags behind"
    again = Line()
    trainer_of(tmp_path / "on", EMA(decay=0.6), max_steps=8).fit(again, datamodule=data, ckpt_path=middle)
    assert again.walked == stage.walked[4:]


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {**weights, "weight": weights["weight"].to(torch.int8)},
        lambda weights: {**weights, "weight": weights["weight"] * float("nan")},
        lambda weights: {**weights, "weight": torch.zeros(9)},
        lambda weights: {"weight": weights["weight"]},
        lambda weights: "weights",
    ],
    ids=["int8", "nan", "shape", "missing", "text"],
)
def test_damaged_weights_in_training_are_refused(change):
    module = torch.nn.Linear(3, 2)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
    checkpoint = {TRAINING_WEIGHTS: change(before), "state_dict": before}
    with pytest.raises(RequestError, match="checkpoint"):
        EMA().on_load_checkpoint(trainer, module, checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
