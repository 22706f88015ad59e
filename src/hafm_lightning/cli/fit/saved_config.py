"""The settings of a run: in its folder, in its checkpoints, and compared when a fit continues."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from hafm_lightning.cli.fit.checks import steps_left_note
from hafm_lightning.cli.fit.continuation import (
    SETTINGS_KEY,
    Change,
    changes_since,
    check_continuation,
    flat_settings,
    history_of,
    recorded,
)
from hafm_lightning.cli.fit.runs import say
from hafm_lightning.files import write_atomic
from hafm_lightning.stages import Stage
from hafm_lightning.training.protocols import KeepsSeed


class SavedConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder and checkpoints, and gives it to the loggers.

    ``fit --config`` with that file starts the same run again in a new folder: the file names the folder of all runs.
    Settings that were changed in the middle of the run stand above it, with the step after which they act.
    """

    history: Sequence[tuple[int, Change]] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: data or checkpoint may still be refused, and the file of an earlier run must not change then."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file on the first process; a run that continues writes it again."""
        if not trainer.is_global_zero:
            return
        run = Path(trainer.default_root_dir)
        config = self.config.clone()
        config.trainer.default_root_dir = str(run.parent)
        if config.ckpt_path is not None and run.resolve() in Path(config.ckpt_path).resolve().parents:
            config.ckpt_path = None  # the run continued itself
        config.allow_changes = False  # of this resume
        text = self.parser.dump(config, skip_none=False)
        changes = [f"# changed after step {step}: {' '.join(str(change).split())}\n" for step, change in self.history]
        write_atomic(run / "config.yaml", "".join([*changes, text]).encode())
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as key -> plain value."""
        return flat_settings(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings, with which those of a continued run are compared."""
        checkpoint[SETTINGS_KEY] = recorded(self.settings, self.history)


def follow_changes(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: Any,
    checkpoint: dict[str, Any],
    *,
    allowed: bool,
    draws_seed: bool,
) -> None:
    """Compare the settings of a fit with those of the checkpoint that it continues, and say what has changed.

    Args:
        trainer: The Trainer of the fit.
        module: Its stage, or another LightningModule, whose settings nothing here applies.
        data: Its data module.
        checkpoint: Content of the checkpoint.
        allowed: Whether changes are applied that would be refused.
        draws_seed: Whether the configuration asks for a random seed; the run keeps the checkpoint's then.

    Raises:
        RequestError: A setting has changed that cannot act on a run under way.
    """
    step = int(checkpoint.get("global_step", 0))
    note = steps_left_note(trainer, step)
    if note:
        say(note)
    if hasattr(data, "allow_changes"):
        allowed = data.allow_changes = allowed or bool(data.allow_changes)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    keeper = next((callback for callback in callbacks if isinstance(callback, SavedConfig)), None)
    if keeper is None:
        return
    record = checkpoint.get(SETTINGS_KEY)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        say("the checkpoint does not record the settings of its run: changes since then cannot be named")
        return
    now = dict(keeper.settings)
    if draws_seed:
        now.pop("seed_everything", None)
    unapplied: tuple[str, ...] = () if isinstance(module, Stage) else ("model.",)
    if isinstance(module, Stage) and not module.has_own_optimizer():
        unapplied = ("model.optimizer.",)
    changes = check_continuation(changes_since(record["settings"], now), allowed=allowed, unapplied=unapplied)
    keeper.history = [*history_of(record), *((step, change) for change in changes)]
    if changes:
        say(f"settings changed after step {step}: {'; '.join(map(str, changes))}")
    for callback in callbacks:
        if isinstance(callback, KeepsSeed):
            callback.keeps_seed = "seed_everything" not in {change.key for change in changes}
