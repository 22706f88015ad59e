"""Every setting of a training run, changed when the run goes on: applied with a line that says so, or refused by name.

A setting that does not shape the trajectory may change in silence. Which is which stands in the package's own table
(``cli/fit/continuation.py``), and tried.
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

STAGE, DATA = "model.init_args", "data.init_args"
OTHER: dict[str, Any] = {
    "seed_everything": 4,
    "model.class_path": "hafm_lightning.stages.SemanticStage",
    f"{STAGE}.backbone.layers": 2,
    f"{STAGE}.backbone.width": 32,
    f"{STAGE}.backbone.heads": 4,
    f"{STAGE}.backbone.feedforward": 32,
    f"{STAGE}.backbone.dropout": 0.2,
    f"{STAGE}.backbone.checkpoint_layers": True,
    f"{STAGE}.conditioning": "prefix",
    f"{STAGE}.pattern": "parallel",
    f"{STAGE}.relative_position": "index",
    f"{STAGE}.conditions": ["instrumental_semantic"],
    f"{STAGE}.guidance_dropout": 0.3,
    f"{STAGE}.look_ahead_s": 0.04,
    f"{STAGE}.look_behind_s": 0.04,
    f"{STAGE}.kernels": "none",
    f"{STAGE}.optimizer.learning_rate": 0.001,
    f"{STAGE}.optimizer.weight_decay": 0.1,
    f"{STAGE}.optimizer.beta1": 0.8,
    f"{STAGE}.optimizer.beta2": 0.9,
    f"{STAGE}.optimizer.warmup_steps": 4,
    f"{STAGE}.optimizer.schedule": "cosine",
    f"{STAGE}.optimizer.total_steps": 50,
    f"{STAGE}.optimizer.final_fraction": 0.5,
    "data.class_path": "hafm_lightning.data_modules.MusdbStems",
    f"{DATA}.root": "prepared",
    f"{DATA}.batch_size": 2,
    f"{DATA}.global_batch_size": 3,
    f"{DATA}.eval_batch_size": 2,
    f"{DATA}.seed": 6,
    f"{DATA}.crop_s": 0.12,
    f"{DATA}.shuffle": False,
    f"{DATA}.drop_last": False,
    f"{DATA}.workers": 1,
    "checkpoints.every_steps": 1,
    "checkpoints.keep": 1,
    "checkpoints.every_minutes": 5,
    "trainer.max_steps": STEPS + 2,
    "trainer.max_epochs": 50,
    "trainer.min_steps": 2,
    "trainer.max_time": "00:01:00:00",
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
    "trainer.limit_val_batches": 1,
    "trainer.overfit_batches": 1,
    "trainer.reload_dataloaders_every_n_epochs": 1,
    "trainer.deterministic": True,
    "trainer.benchmark": True,
    "trainer.detect_anomaly": True,
    "trainer.enable_progress_bar": True,
    "trainer.enable_model_summary": True,
    "trainer.callbacks": [{"class_path": "hafm_lightning.callbacks.EMA", "init_args": {"decay": 0.5}}],
}
"""Key -> another value that is allowed by itself."""
KEPT_BY_TRY = ("trainer.default_root_dir", "trainer.check_val_every_n_epoch")
"""Keys of the configuration that this table need not name: where the run lies, and that steps count validation."""
WORDLESS = ("free",)
"""Treatments that need no line."""
REFUSED = ("refused", "network", "data")


def treatment(key: str) -> str:
    """What the package's table says of a key."""
    from hafm_lightning.cli.fit.continuation import treatment_of

    return treatment_of(key.replace(".init_args", ""))


def unlisted() -> list[str]:
    """Keys of the configuration without another value above."""
    leaves: list[Keys] = list(paths_of(fit_values()))
    names = {dotted(keys) for keys in leaves}
    inner = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    return sorted(names - inner - set(OTHER) - set(KEPT_BY_TRY))


def do_change(key: str, value: Any, bench: Bench) -> list[str]:
    """Resume with one setting changed."""
    work, name = WORKS["resume"], key.rpartition(".")[2]
    bench.lay_out(work.reads)
    path = bench.inside / "fit.yaml"
    content = yaml.safe_load(path.read_text())
    place(content, tuple(key.split(".")), value)
    path.write_text(yaml.safe_dump(content))
    ending = bench.run(work)
    found = broken_rules(ending) + bench.outside()
    if found:
        return found
    said = any(name in line for line in (ending.err + ending.out).splitlines())
    kind = treatment(key)
    if ending.code == 0:
        if kind in REFUSED and work.result(bench.inside) != bench.expected[work.name]:
            return [f"applied, though the table says {kind}"]
        same = work.result(bench.inside) == bench.expected[work.name]
        if kind == "applied" and not said:
            return [f"{'ignored' if same else 'applied'} without a line that names it"]
        return []
    if kind in WORDLESS:
        return [f"refused, though the table says {kind}: {ending.err.strip()[-200:]}"]
    if kind == "applied":
        return [f"refused, though the table says applied: {ending.err.strip()[-200:]}"]
    return []


def setting_tries() -> Iterator[Try]:
    """Every setting."""
    for key, value in OTHER.items():
        yield Try("settings changed at resume", f"{key} = {value}", ("resume",), partial(do_change, key, value))
