"""Every setting of a training run, changed when the run goes on: applied with a line that says so, or refused by name.

A setting that does not shape the trajectory may change in silence, and then changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import yaml
from bench import Bench
from damage import Keys, dotted, paths_of, place
from oracle import broken_rules
from tries import Try
from works import WORKS
from workshop import STEPS, fit_values

OTHER: dict[str, Any] = {
    "seed_everything": 4,
    "model.class_path": "hafm_lightning.stages.SemanticStage",
    "model.init_args.backbone.layers": 2,
    "model.init_args.backbone.width": 32,
    "model.init_args.backbone.heads": 4,
    "model.init_args.backbone.feedforward": 32,
    "model.init_args.backbone.dropout": 0.2,
    "model.init_args.conditioning": "prefix",
    "model.init_args.pattern": "parallel",
    "model.init_args.conditions": ["instrumental_semantic"],
    "model.init_args.guidance_dropout": 0.3,
    "model.init_args.look_ahead_s": 0.04,
    "model.init_args.optimizer.learning_rate": 0.001,
    "model.init_args.optimizer.weight_decay": 0.1,
    "model.init_args.optimizer.warmup_steps": 4,
    "data.class_path": "hafm_lightning.data_modules.MusdbStems",
    "data.init_args.root": "prepared",
    "data.init_args.batch_size": 2,
    "data.init_args.seed": 6,
    "data.init_args.crop_s": 0.1,
    "checkpoints.every_steps": 1,
    "checkpoints.keep": 1,
    "trainer.max_steps": STEPS + 2,
    "trainer.accelerator": "auto",
    "trainer.devices": "auto",
    "trainer.precision": "bf16-mixed",
    "trainer.gradient_clip_val": 0.1,
    "trainer.gradient_clip_algorithm": "value",
    "trainer.accumulate_grad_batches": 2,
    "trainer.val_check_interval": 1,
    "trainer.log_every_n_steps": 2,
    "trainer.num_sanity_val_steps": 1,
    "trainer.limit_train_batches": 2,
    "trainer.deterministic": True,
    "trainer.enable_progress_bar": True,
    "trainer.enable_model_summary": True,
}
"""Key -> another value that is allowed by itself."""
KEPT_BY_TRY = ("trainer.default_root_dir", "trainer.check_val_every_n_epoch")
"""Keys of the configuration that this table need not name: where the run lies, and that steps count validation."""
SILENT = frozenset(
    {
        "checkpoints.every_steps",
        "checkpoints.keep",
        "trainer.max_steps",  # a longer run is what resuming is for
        "trainer.accelerator",
        "trainer.devices",
        "trainer.val_check_interval",
        "trainer.log_every_n_steps",
        "trainer.num_sanity_val_steps",
        "trainer.enable_progress_bar",
        "trainer.enable_model_summary",
        "trainer.deterministic",
    }
)
"""Settings that may change without a word."""


def unlisted() -> list[str]:
    """Keys of the configuration without another value above."""
    leaves: list[Keys] = list(paths_of(fit_values()))
    names = {dotted(keys) for keys in leaves}
    inner = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    return sorted(names - inner - set(OTHER) - set(KEPT_BY_TRY))


def do_change(key: str, value: Any, bench: Bench) -> list[str]:
    """Resume with one setting changed."""
    work = WORKS["resume"]
    bench.lay_out(work.reads)
    path = bench.inside / "fit.yaml"
    content = yaml.safe_load(path.read_text())
    place(content, tuple(key.split(".")), value)
    path.write_text(yaml.safe_dump(content))
    ending = bench.run(work)
    found = broken_rules(ending) + bench.outside()
    if found or ending.code != 0:
        return found
    said = any(key.rpartition(".")[2] in line for line in ending.err.splitlines() + ending.out.splitlines())
    if key in SILENT or said:
        return []
    same = work.result(bench.inside) == bench.expected[work.name]
    return [f"{'ignored' if same else 'applied'} without a line that names it"]


def setting_tries() -> Iterator[Try]:
    """Every setting."""
    for key, value in OTHER.items():
        yield Try("settings changed at resume", f"{key} = {value}", ("resume",), partial(do_change, key, value))
