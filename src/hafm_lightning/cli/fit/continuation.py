"""What becomes of a setting that is changed when a fit continues from a checkpoint: one table of all keys.

Lightning restores optimizer, loops and data from the checkpoint, whatever the configuration says by then. So every
checkpoint of a fit holds the settings of its run, and a fit that continues compares them with its own:

=========== ==========================================================================================================
applied     the new value acts from the next step on; a line names old and new value
refused     the run would not continue as either of the two; ``--allow_changes true`` applies the new value
network     another network: weights and optimizer do not fit, so that a new run is necessary
data        other batches: refused by what the shards hold and how they are drawn (``TokenShards``), unless
            ``--allow_changes true``
free        shapes no weights: takes the new value without a word
=========== ==========================================================================================================

``docs/reproduction.md`` has the table; keys of classes outside this project are refused, those of callbacks applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from hafm_lightning.errors import RequestError

Treatment = Literal["applied", "refused", "network", "data", "free"]

SETTINGS_KEY = "hafm_lightning_settings"
"""Entry of a checkpoint with the settings of its run."""
SETTINGS_VERSION = 1
NAMED = 6
"""Most changes that a message names."""

TABLE: Mapping[Treatment, str] = {
    "applied": """
        model.guidance_dropout model.backbone.dropout model.kernels
        model.optimizer.learning_rate model.optimizer.weight_decay model.optimizer.beta1 model.optimizer.beta2
        model.optimizer.warmup_steps model.optimizer.schedule model.optimizer.total_steps
        model.optimizer.final_fraction model.optimizer.fused
        trainer.max_steps trainer.min_steps trainer.max_epochs trainer.min_epochs trainer.max_time
        trainer.accumulate_grad_batches trainer.gradient_clip_val trainer.gradient_clip_algorithm trainer.precision
        trainer.accelerator trainer.strategy trainer.strategy.* trainer.plugins trainer.plugins.* trainer.sync_batchnorm
        trainer.deterministic trainer.benchmark
        trainer.limit_val_batches trainer.val_check_interval trainer.check_val_every_n_epoch
        trainer.callbacks.EMA trainer.callbacks.EMA.decay trainer.callbacks.EMA.every_steps
    """,
    "refused": """
        seed_everything model.class_path data.class_path
        trainer.limit_train_batches trainer.overfit_batches trainer.reload_dataloaders_every_n_epochs
        trainer.use_distributed_sampler
    """,
    "network": """
        model.pattern model.conditioning model.relative_position model.conditions model.prefix_mask
        model.look_ahead_s model.look_behind_s
        model.backbone.layers model.backbone.width model.backbone.heads model.backbone.feedforward
    """,
    "data": """
        data.root data.batch_size data.global_batch_size data.crop_s data.seed data.shuffle data.drop_last
        data.path data.tokenizers_from data.clip_s data.hop_s
        trainer.devices trainer.num_nodes
    """,
    "free": """
        ckpt_path weights_only allow_changes model.backbone.checkpoint_layers
        data.eval_batch_size data.workers data.streams data.cache_dir data.allow_changes
        data.allow_partial data.preparation_workers
        trainer.logger trainer.logger.* trainer.callbacks trainer.default_root_dir trainer.log_every_n_steps
        trainer.enable_checkpointing trainer.enable_progress_bar trainer.enable_model_summary
        trainer.enable_autolog_hparams trainer.model_registry trainer.fast_dev_run trainer.num_sanity_val_steps
        trainer.limit_test_batches trainer.limit_predict_batches trainer.inference_mode trainer.detect_anomaly
        trainer.barebones trainer.profiler trainer.profiler.*
        trainer.callbacks.MusicEvaluation trainer.callbacks.MusicEvaluation.*
        trainer.callbacks.StepProgress
        checkpoints.every_steps checkpoints.every_minutes checkpoints.keep checkpoints.monitor checkpoints.mode
        dashboard.paper
    """,
}
"""Treatment -> its keys as messages name them (without ``init_args``); ``.*`` stands for all keys below one."""
RULES: Mapping[str, Treatment] = {key: treatment for treatment, keys in TABLE.items() for key in keys.split()}


class Change(NamedTuple):
    """A setting that differs between a checkpoint and the run that continues from it."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} {shown(self.before)} -> {shown(self.now)}"


def shown(value: Any) -> str:
    """A value as a configuration has it, not too long."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!s:.60}"


def rule_of(key: str) -> Treatment | None:
    """The table's treatment of a key; None for a key that is not in it."""
    parts = key.split(".")
    above = (".".join([*parts[:length], "*"]) for length in range(len(parts) - 1, 0, -1))
    return next((RULES[name] for name in (key, *above) if name in RULES), None)


def treatment_of(key: str) -> Treatment:
    """The treatment of any key: those of callbacks from elsewhere are applied, all others from elsewhere refused."""
    return rule_of(key) or ("applied" if key.startswith("trainer.callbacks.") else "refused")


def flat_settings(config: Any) -> dict[str, Any]:
    """A configuration of plain values as key -> value; ``class_path`` and ``init_args`` of a section are one level.

    Elements of a list of classes are named by their class, ``trainer.callbacks.EMA.decay``, with ``true`` for the class
    itself.
    """
    flat: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                add(key if name in ("init_args", "dict_kwargs") else f"{key}.{name}".removeprefix("."), inner)
        elif isinstance(value, list) and any(isinstance(item, Mapping) and "class_path" in item for item in value):
            for item in value:
                content = item if isinstance(item, Mapping) else {"class_path": str(item)}
                name = f"{key}.{str(content.get('class_path')).rpartition('.')[2]}"
                while name in flat:  # a second one of the same class
                    name += "+"
                flat[name] = True
                add(name, content.get("init_args") or {})
        elif not (isinstance(value, Mapping) and key):
            flat[key] = value

    add("", config)
    return flat


def recorded(settings: Mapping[str, Any], changes: Iterable[tuple[int, Change]]) -> dict[str, Any]:
    """The entry of a checkpoint: the settings that are compared, and the changes since the run began."""
    compared = {key: value for key, value in settings.items() if treatment_of(key) != "free"}
    history = [[step, *change] for step, change in changes]
    return {"version": SETTINGS_VERSION, "settings": compared, "changes": history}


def changes_since(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Settings that differ; keys that one side does not know (another class or version) only where they are classes."""
    found = []
    for key in sorted(saved.keys() | now.keys()):
        is_class = key.startswith("trainer.callbacks.") and key.count(".") == 2
        if is_class and (key in saved) != (key in now):
            found.append(Change(key, key in saved, key in now))
        elif key in saved and key in now and saved[key] != now[key]:
            found.append(Change(key, saved[key], now[key]))
    return [change for change in found if treatment_of(change.key) != "free"]


def history_of(record: Mapping[str, Any]) -> list[tuple[int, Change]]:
    """The changes that a checkpoint records, with the step from which each acted."""
    entries = record.get("changes")
    rows = [row for row in entries if isinstance(row, list) and len(row) == 4] if isinstance(entries, list) else []
    return [(step, Change(str(key), before, now)) for step, key, before, now in rows if isinstance(step, int)]


def check_continuation(changes: Iterable[Change], *, allowed: bool, unapplied: tuple[str, ...] = ()) -> list[Change]:
    """The changes that are applied; RequestError that names those that are not.

    Network and data are compared by what they are, not by their settings: by the stage and the data module.

    Args:
        changes: Settings that differ.
        allowed: Whether changes are applied that would be refused.
        unapplied: Keys, or beginnings of keys, that the table applies but this run's classes do not.
    """
    refused, applied = [], []
    for change in changes:
        treatment = treatment_of(change.key)
        if treatment == "refused" or (treatment == "applied" and change.key.startswith(unapplied or ("\0",))):
            refused.append(change)
        elif treatment == "applied":
            applied.append(change)
    if refused and not allowed:
        named = "; ".join(map(str, refused[:NAMED])) + (" ..." if len(refused) > NAMED else "")
        raise RequestError(
            f"settings changed since the checkpoint that cannot act on a run under way: {named}\n"
            "set them back, or continue with the changes: --allow_changes true\n"
            'docs/reproduction.md ("Settings changed at a resume") lists what is applied'
        )
    return [*applied, *refused]
