"""Each private name of Lightning and torch does what it is used for; an upgrade that removes one fails here by name."""

import ast
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader

from hafm_lightning.training import internals
from hafm_lightning.training.internals import NotesMoves

BATCHES = 5


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch, index):
        self.log("loss", self.weight)
        return self.weight * batch.sum()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)


class Rows(Logger):
    """Remembers at which step each row was written."""

    name = version = None

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        self.steps.append(step)

    def log_hyperparams(self, *_):
        pass


class Watch(pl.Callback):
    """What the functions say at the end of each training batch."""

    def __init__(self, *functions):
        self.functions, self.said = functions, []

    def on_train_batch_end(self, trainer, *_):
        self.said.append([function(trainer) for function in self.functions])


ROOT = Path(__file__).parents[2]
TRAINING = [*ROOT.glob("callbacks/*.py"), *ROOT.glob("data_modules/*.py")]
TRAINING += [
    ROOT / "src" / "hafm_lightning" / f"{name}.py"
    for name in (
        "stages",
        "training/protocols",
        "training/token_means",
        "optimizer",
        "training/step_weights",
        "checkpoint_format",
    )
]


def private_names(code):
    """Private attributes that code reads or sets on anything but itself."""
    return {
        ast.unparse(node)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
        and re.match("_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_private_names_stand_in_one_file(path):
    assert private_names(path.read_text()) == set()


def test_the_check_for_private_names_can_tell():
    assert private_names("trainer.fit_loop._should_accumulate()") == {"trainer.fit_loop._should_accumulate"}
    assert private_names("torch._foreach_mul_([], 2)\nself._mine = self._other(1)") == {"torch._foreach_mul_"}


def data():
    return DataLoader(torch.ones(BATCHES, 2), batch_size=1)


def run(tmp_path, *callbacks, **settings):
    defaults = {"max_epochs": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"logger": False, **defaults, **settings},
    )
    trainer.fit(Line(), data(), data())
    return trainer


def test_steps_epochs_validations_and_the_end_are_announced(tmp_path):
    watch = Watch(internals.finishes_step, internals.ends_epoch, internals.ends_training, internals.validation_follows)
    run(tmp_path, watch, accumulate_grad_batches=2, val_check_interval=3)
    finishes, epochs, ends, validations = (list(values) for values in zip(*watch.said, strict=True))
    assert finishes == [False, True, False, True, True] * 2, "groups of two batches, and what is left of an epoch"
    assert epochs == ends == [False, False, False, False, True] * 2
    assert validations == [False, False, True, False, False] * 2

    watch = Watch(internals.ends_epoch, internals.ends_training)
    run(tmp_path, watch, max_steps=3)
    assert watch.said == [[False, False], [False, False], [False, True]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_are_announced_before_lightning_writes_them(tmp_path, accumulate):
    watch = Watch(internals.writes_row, internals.finishes_step)
    settings = {"log_every_n_steps": 2, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    run(tmp_path, watch, logger=(rows := Rows()), **settings)
    steps = [written for written, finishes in watch.said if finishes]
    assert [step for step, written in enumerate(steps) if written] == rows.steps
    assert len(rows.steps) >= 3


def test_a_row_can_be_written_before_its_time(tmp_path):
    class Early(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                internals.write_row(trainer)
                seen.append(list(rows.steps))
                trainer.should_stop = True

    seen, rows = [], Rows()
    run(tmp_path, Early(), logger=rows, log_every_n_steps=2)
    assert seen == [[1]]


def test_a_run_ends_as_after_sigterm(tmp_path):
    class Ending(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            internals.note_sigterm(trainer)
            trainers.append(trainer)

    trainers = []
    with pytest.raises(SIGTERMException):
        run(tmp_path, Ending())
    assert len(trainers) == 1, "after the first batch"
    assert trainers[0].received_sigterm


def test_the_state_after_the_last_batch_of_an_epoch_begins_the_next_one(tmp_path):
    watch = Watch(internals.loop_state_after_batch)
    run(tmp_path, watch)
    done = [state["epoch_progress"]["current"]["completed"] for (state,) in watch.said]
    assert done == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    batches = [state["epoch_loop.batch_progress"]["current"]["ready"] for (state,) in watch.said]
    assert batches == [1, 2, 3, 4, 5] * 2
    assert watch.said[0][0]["epoch_progress"] is not watch.said[1][0]["epoch_progress"], "a copy"


def test_the_scaler_unscales_a_fused_optimizer_before_its_step():
    """Left to itself, a fused optimizer unscales within its step: the gradients before it are the scaled ones."""
    seen = []
    for prepared in (False, True):
        weight = nn.Parameter(torch.ones(()))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        if prepared:
            internals.unscale_before_step(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(3 * weight).backward()
        optimizer.register_step_pre_hook(lambda *_, weight=weight: seen.append(float(weight.grad)))
        scaler.step(optimizer)
    assert seen == [24.0, 3.0]


def test_lists_of_tensors_are_changed_in_place():
    tensors, goals = [torch.ones(2), torch.full((3,), 2.0)], [torch.zeros(2), torch.full((3,), 4.0)]
    internals.move_all(tensors, goals, 0.25)
    assert [tensor.tolist() for tensor in tensors] == [[0.75] * 2, [2.5] * 3]
    internals.scale_all(tensors, 2.0)
    assert [tensor.tolist() for tensor in tensors] == [[1.5] * 2, [5.0] * 3]


def test_settings_and_run_of_a_wandb_logger(tmp_path):
    logger = WandbLogger(project="test", offline=True, save_dir=tmp_path, name="shown", id="a1b2")
    settings = internals.wandb_settings(logger)
    assert {key: settings[key] for key in ("dir", "name", "id")} == {
        "dir": str(tmp_path),
        "name": "shown",
        "id": "a1b2",
    }
    assert internals.wandb_run(logger) is None
    begun = object()
    internals.set_wandb_run(logger, begun)
    assert internals.wandb_run(logger) is begun


def test_a_module_is_told_of_moves_of_itself_and_of_what_holds_it():
    class Told(NotesMoves):
        def __init__(self):
            super().__init__()
            self.weight, self.moves = torch.nn.Parameter(torch.zeros(2)), []

        def on_moved(self):
            self.moves.append(self.weight.dtype)

    module = Told()
    assert module.double() is module
    torch.nn.Sequential(module).half()
    assert module.moves == [torch.float64, torch.float16]
