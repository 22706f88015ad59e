"""Every precision, clipping, accumulation and kernel takes the steps of a plain loop, or is refused."""

import copy
import functools
import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
import yaml
from fits import log_of, write_config
from lightning.pytorch.plugins import MixedPrecision
from resume_child import finish, start
from tiny_models import TINY
from tiny_shards import write_tiny_shards
from tiny_stages import clips, loader, tiny_stage, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from hafm_lightning.callbacks import NonFiniteGuard
from hafm_lightning.callbacks.loggers import read_rows
from hafm_lightning.checkpoint_format import read_checkpoint
from hafm_lightning.cli import main
from hafm_lightning.cli.fit.runs import newest_checkpoint
from hafm_lightning.errors import RequestError
from hafm_lightning.optimizer import OptimizerConfig
from hafm_lightning.stages import SemanticStage
from hafm_lightning.training.step_weights import check_training

RATE, STEPS, SCALE = 0.01, 4, 256.0
SIZES = (4, 4, 4, 4, 2)
"""Clips of an epoch's batches: with 3 accumulated, the second step has 2 batches, the last of which is smaller."""


@dataclass(frozen=True)
class Arithmetic:
    """What a plain loop does for a precision: type of the weights, of autocast, and how far rounding may lead."""

    weights: torch.dtype
    autocast: torch.dtype | None
    tolerance: float


SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
ARITHMETIC = {
    "32-true": Arithmetic(SINGLE, None, 1e-4),
    "64-true": Arithmetic(torch.float64, None, 1e-4),  # the loss is taken in float32
    "bf16-mixed": Arithmetic(SINGLE, BRAIN, 0.03),
    "16-mixed": Arithmetic(SINGLE, BRAIN, 0.03),  # Lightning takes bf16-mixed for it on a CPU
    "16-mixed, scaled": Arithmetic(SINGLE, HALF, 0.01),
    "bf16-true": Arithmetic(BRAIN, None, 0.05),
}
CLIPPING = {"none": {}, "norm": {"gradient_clip_val": 0.3}, "value": {"gradient_clip_val": 0.01}}


def settings_of(precision, clipping):
    """The Trainer's settings of a row of the table."""
    settings = dict(CLIPPING[clipping])
    if settings:
        settings["gradient_clip_algorithm"] = clipping
    if precision == "16-mixed, scaled":  # as on a GPU
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        return settings | {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    return settings | {"precision": precision}


def small_stage(**optimizer):
    config = OptimizerConfig(learning_rate=RATE, **optimizer)
    return tiny_stage(SemanticStage, guidance_dropout=0.0, optimizer=config)


class Steps(pl.Callback):
    """The gradients with which each step was taken."""

    def __init__(self):
        self.gradients = []

    def on_train_start(self, trainer, pl_module):
        parameters = list(pl_module.parameters())
        trainer.optimizers[0].register_step_post_hook(
            lambda *_: self.gradients.append([p.grad.detach().clone() for p in parameters])
        )


@functools.cache  # fused and unfused steps are compared with the same one
def reference(precision, clipping, accumulate):
    """Gradients and weights of the plain loop for a row of the table, and the weights before."""
    stage = small_stage()
    batches = [clips(stage, size, seed) for seed, size in enumerate(SIZES)]
    scale = SCALE if "scaled" in precision else 1.0
    taken = plain_loop(stage.model, batches, ARITHMETIC[precision], clipping, accumulate, scale=scale)
    return *taken, [p.detach() for p in stage.model.parameters()]


def plain_loop(model, batches, arithmetic, clipping, accumulate, steps=STEPS, scale=1.0, skipped=()):
    """Gradients and weights of ``steps`` steps, by hand; the steps numbered in ``skipped`` are not taken."""
    model = copy.deepcopy(model).to(arithmetic.weights).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, foreach=False, fused=False)
    groups = [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]
    seen, target = [], model.layout.target.name
    bound = CLIPPING[clipping].get("gradient_clip_val")
    for step in range(steps):
        group = groups[step % len(groups)]
        for batch in group:
            half = arithmetic.autocast
            with torch.autocast("cpu", half, cache_enabled=False) if half is not None else nullcontext():
                logits = model(batch.streams)
            loss = F.cross_entropy(logits.float().flatten(0, -2), batch[target].flatten())
            (scale * loss * len(batch) / sum(map(len, group))).backward()
        for parameter in model.parameters():
            parameter.grad /= scale
        if clipping == "norm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
        elif clipping == "value":
            torch.nn.utils.clip_grad_value_(model.parameters(), bound)
        if step not in skipped:
            seen.append([p.grad.detach().clone() for p in model.parameters()])
            optimizer.step()
        optimizer.zero_grad()
    return seen, [p.detach() for p in model.parameters()]


def distance(found, expected, origin=None):
    """Norm of the difference over the norm of what is expected (of its way from ``origin``)."""
    found, expected = (torch.cat([part.double().flatten() for part in parts]).detach() for parts in (found, expected))
    way = expected if origin is None else expected - torch.cat([part.double().flatten() for part in origin])
    return float((found - expected).norm() / way.norm())


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("precision", ARITHMETIC)
def test_every_combination_takes_the_steps_of_a_plain_loop(precision, clipping, accumulate, fused, tmp_path):
    arithmetic = ARITHMETIC[precision]
    stage = small_stage(fused=fused)
    batches = [clips(stage, size, seed) for seed, size in enumerate(SIZES)]
    gradients, weights, before = reference(precision, clipping, accumulate)
    settings = settings_of(precision, clipping) | {"max_steps": STEPS, "accumulate_grad_batches": accumulate}
    with warnings.catch_warnings(action="ignore"):  # Lightning on 16-mixed without a GPU
        run = trainer(tmp_path, callbacks=[NonFiniteGuard(), steps := Steps()], **settings)
    run.fit(stage, loader(*batches))
    assert run.optimizers[0].param_groups[0]["fused"] is (fused is None)
    assert len(steps.gradients) == STEPS
    for found, expected in zip(steps.gradients, gradients, strict=True):
        assert distance(found, expected) < arithmetic.tolerance
        largest = max(float(part.abs().max()) for part in found)
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in found))
        if clipping == "value":
            assert largest == pytest.approx(0.01, rel=0.01), "the bound was not reached, so that nothing was tested"
        elif clipping == "norm":
            assert norm == pytest.approx(0.3, rel=0.01)
        else:
            assert norm > 0.4
    parameters = list(stage.model.parameters())
    assert {p.dtype for p in parameters} == {arithmetic.weights}
    assert distance(parameters, weights, before) < 5 * arithmetic.tolerance


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("clipping", CLIPPING)
def test_a_step_that_overflows_is_skipped_and_lowers_the_scale(clipping, fused, tmp_path):
    """The loss scaler's part: one infinite gradient costs one step, and leaves weights and moments alone."""
    stage = small_stage(fused=fused)
    batches = [clips(stage, 4, seed) for seed in range(5)]

    class Overflow(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.fit_loop.epoch_loop.batch_idx == 2:
                next(pl_module.parameters()).grad.view(-1)[0] = math.inf

    before = [p.detach().clone() for p in stage.model.parameters()]
    gradients, weights = plain_loop(
        stage.model, batches, ARITHMETIC["16-mixed, scaled"], clipping, 1, steps=5, scale=SCALE, skipped=(2,)
    )
    callbacks = [Overflow(), NonFiniteGuard(), steps := Steps()]
    run = trainer(
        tmp_path, callbacks=callbacks, max_epochs=1, max_steps=-1, **settings_of("16-mixed, scaled", clipping)
    )
    run.fit(stage, loader(*batches))
    assert run.precision_plugin.scaler.get_scale() == SCALE / 2
    assert len(steps.gradients) == 4, "the step with the infinite gradient was taken"
    for found, expected in zip(steps.gradients, gradients, strict=True):
        assert distance(found, expected) < 0.02
    assert distance(list(stage.model.parameters()), weights, before) < 0.05
    assert {float(state["step"]) for state in run.optimizers[0].state.values()} == {4.0}


@pytest.mark.parametrize("setting", ["whole", "limit_train_batches", "overfit_batches", "length unknown"])
def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_that_came(setting, tmp_path):
    """3 batches, 2 a step: the second step of each epoch has one, and must not be half as large."""

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(batches)

    stage = small_stage()
    batches = [clips(stage, 4, seed) for seed in range(3)]
    extra = [clips(stage, 4, 9)] * 2
    data = {
        "whole": loader(*batches),
        "limit_train_batches": loader(*batches, *extra),
        "overfit_batches": loader(*batches, *extra),
        "length unknown": DataLoader(Endless(), batch_size=None),
    }[setting]
    limits = {setting: 3} if "batches" in setting else {}
    gradients, _ = plain_loop(stage.model, batches, ARITHMETIC["32-true"], "none", 2)
    norms = []

    class Norms(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if not trainer.fit_loop._should_accumulate():
                norms.append(float(trainer.callback_metrics["train/gradient_norm"]))

    with warnings.catch_warnings(action="ignore"):
        run = trainer(
            tmp_path,
            max_steps=STEPS,
            accumulate_grad_batches=2,
            callbacks=[NonFiniteGuard(), steps := Steps(), Norms()],
            **limits,
        )
        run.fit(stage, data)
    for found, expected in zip(steps.gradients, gradients, strict=True):
        assert distance(found, expected) < 1e-4
    expected = [math.sqrt(sum(float(part.square().sum()) for part in step)) for step in gradients]
    assert norms == pytest.approx(expected, rel=1e-3), "the logged norm is not that of the step"


def test_whole_groups_are_left_as_lightning_makes_them(tmp_path):
    """No rounding of ours in ordinary runs: weights of a stage without the weighing are equal bit for bit."""

    class Unweighed(SemanticStage):
        def training_step(self, batch, batch_index):
            return self.training_loss(batch)

    found = []
    for kind in (SemanticStage, Unweighed):
        torch.manual_seed(0)
        stage = tiny_stage(kind) if kind is SemanticStage else kind(backbone=TINY)
        stage.load_state_dict(tiny_stage(SemanticStage).state_dict())
        batches = [clips(tiny_stage(SemanticStage), 4, seed) for seed in range(4)]
        torch.manual_seed(1)
        trainer(tmp_path, max_steps=6, accumulate_grad_batches=2, gradient_clip_val=1.0).fit(stage, loader(*batches))
        found.append([p.detach() for p in stage.parameters()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def test_processes_share_an_uneven_end_of_an_epoch_by_clips(tmp_path):
    """7 clips, 2 batches a step: two processes of 2 clips a batch take the steps that one takes with 4 a batch."""
    model = {
        "class_path": "hafm_lightning.stages.SemanticStage",
        "init_args": {
            "backbone": {"layers": 1, "width": 16, "heads": 2, "feedforward": 24},
            "guidance_dropout": 0.0,
            "optimizer": {"learning_rate": RATE},
        },
    }
    changes = {"trainer__max_steps": 3, "trainer__callbacks": [], "trainer__limit_val_batches": 0}
    weights, norms = [], []
    for processes, batch_size, accumulate in ((1, 4, 2), (2, 2, 2), (1, 4, 1), (2, 2, 1)):
        folder = tmp_path / f"{processes} {accumulate}"
        folder.mkdir()
        write_tiny_shards(folder / "shards", train=(7,), validation=(3, 2))
        more = {"data__drop_last": False, "trainer__accumulate_grad_batches": accumulate}
        config = write_config(folder / "run", data__batch_size=batch_size, **changes, **more)
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"model": model}))
        if processes == 1:
            assert main(["fit", "--config", str(config)]) == 0
        else:
            codes = finish(start(["fit", "--config", str(config)], config.parent / "run", processes))
            assert set(codes) == {0}, log_of(config)
        weights.append(list(read_checkpoint(newest_checkpoint(folder / "run/logs/run-000"))["state_dict"].values()))
        rows = read_rows(folder / "run/logs/run-000/metrics.csv")
        norms.append([float(row["train/gradient_norm"]) for row in rows])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert norms[3] == pytest.approx(norms[2], rel=1e-4)
    assert distance(weights[1], weights[0]) < 1e-5
    assert distance(weights[3], weights[2]) < 1e-5


@pytest.mark.parametrize(
    ("precision", "becomes"),
    [
        (16, "bf16-mixed"),
        ("16", "bf16-mixed"),
        ("bf16", "bf16-mixed"),
        (32, "32-true"),
        ("64", "64-true"),
    ],
)
def test_short_names_of_precisions_train(precision, becomes, tmp_path):
    with warnings.catch_warnings(action="ignore"):
        run = trainer(tmp_path, precision=precision, gradient_clip_val=0.5)
    stage = small_stage()
    run.fit(stage, loader(clips(stage)))
    assert run.precision == becomes
    assert run.global_step == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "16-true"}, "bf16-mixed"),
        ({"precision": "16-true", "gradient_clip_val": 1.0}, "bf16-mixed"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val"),
        ({"gradient_clip_val": math.nan}, "gradient_clip_val"),
        ({"gradient_clip_val": math.inf}, "gradient_clip_val"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_val"),
    ],
)
def test_what_would_train_wrongly_is_refused_before_the_first_step(settings, words, tmp_path):
    stage = small_stage()
    run = trainer(tmp_path, **settings)
    with pytest.raises(RequestError, match=words) as error:
        run.fit(stage, loader(clips(stage)))
    assert len(str(error.value).splitlines()) <= 3
    assert run.global_step == 0


def test_float16_weights_are_refused_for_a_reason(tmp_path):
    """If this ever passes, torch keeps AdamW's moments of float16 weights in float32, and the refusal can go."""
    losses = {}
    for dtype in (SINGLE, HALF):
        stage = small_stage()
        batch = clips(stage)
        model = copy.deepcopy(stage.model).to(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for _ in range(20):
            optimizer.zero_grad()
            logits = model(batch.streams).float()
            loss = F.cross_entropy(logits.flatten(0, -2), batch[stage.target].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        losses[dtype] = float(loss.detach())
    assert not losses[HALF] < 1.5 * losses[SINGLE]


def test_clipping_by_the_norm_is_refused_where_lightning_cannot(tmp_path):
    from lightning.pytorch.plugins import FSDPPrecision

    run = trainer(tmp_path, gradient_clip_val=1.0)
    run.strategy._precision_plugin = FSDPPrecision("32-true")
    with pytest.raises(RequestError, match="FSDP"):
        check_training(run)
    run.gradient_clip_algorithm = "value"
    check_training(run)
