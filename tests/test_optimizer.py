"""AdamW as in the paper, and the schedule of its learning rate."""

import copy
import math

import lightning.pytorch as pl
import pytest
import torch
from tiny_stages import clips, loader, tiny_stage, trainer

from hafm_lightning.errors import RequestError
from hafm_lightning.optimizer import OptimizerConfig, adamw
from hafm_lightning.stages import SemanticStage


def test_the_papers_optimizer_is_the_default():
    optimizer = tiny_stage().configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 0.01, (0.9, 0.999))
    stage = tiny_stage()
    chosen = {id(p) for g in stage.configure_optimizers().param_groups for p in g["params"]}
    assert chosen == {id(parameter) for parameter in stage.parameters()}


def test_warm_up_rises_linearly_and_cosine_falls_to_its_floor(tmp_path):
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=4, schedule="cosine", total_steps=12, final_fraction=0.1)
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    stage = tiny_stage(SemanticStage, optimizer=config)
    trainer(tmp_path, max_steps=14, callbacks=[Rates()]).fit(stage, loader(*[clips(stage)] * 14))
    expected = [0.0025, 0.005, 0.0075, 0.01]
    expected += [0.001 + 0.009 * (1 + math.cos(math.pi * done / 8)) / 2 for done in range(9)] + [0.001]
    assert rates == pytest.approx(expected[: len(rates)], abs=1e-9)
    assert len(rates) == 14
    assert OptimizerConfig(warmup_steps=0).factor(10**6) == 1.0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"schedule": "cosine"}, "total_steps"),
        ({"schedule": "cosine", "warmup_steps": 10, "total_steps": 10}, "total_steps"),
    ],
)
def test_impossible_optimizer_settings_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        OptimizerConfig(**wrong)


@pytest.mark.parametrize(
    ("device", "asked", "fused"),
    [("cpu", None, True), ("cpu", True, True), ("cpu", False, False), ("meta", None, False), ("meta", False, False)],
)
def test_the_step_is_fused_where_the_device_can_unless_told_otherwise(device, asked, fused):
    parameter = torch.nn.Parameter(torch.ones(2, device=device))
    assert adamw([parameter], OptimizerConfig(fused=asked)).defaults["fused"] is fused


def test_a_fused_step_on_a_device_without_one_is_refused():
    with pytest.raises(RequestError, match="fused"):
        adamw([torch.nn.Parameter(torch.ones(2, device="meta"))], OptimizerConfig(fused=True))


@pytest.mark.parametrize("fused", [None, False])
def test_moments_of_earlier_checkpoints_continue(fused):
    """The optimizer of before was torch's own, fused or not: the same state, and the same next step."""
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(3)]
    old = torch.optim.AdamW(parameters[:1], lr=1e-4, weight_decay=0.01, fused=fused is None)
    parameters[0].grad = torch.linspace(1, 3, 5)
    old.step()
    new = adamw(parameters[1:2], OptimizerConfig(fused=fused))
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert not old.state_dict().keys() ^ new.state_dict().keys()
    for optimizer, parameter in ((old, parameters[0]), (new, parameters[1])):
        parameter.grad = torch.linspace(-2, 1, 5)
        optimizer.step()
    assert torch.equal(parameters[0], parameters[1])
