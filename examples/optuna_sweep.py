"""Search settings of a stage with Optuna, without any server: every trial is a `fit` in a run folder of its own.

    pip install optuna
    python -m hafm_lightning prepare --config experiments/quickstart/prepare.yaml
    python examples/optuna_sweep.py --trials 20
    python -m hafm_lightning compare logs/optuna/trial-*      # the trials side by side

The study is a file in --out: started again, the script goes on where it stopped, and several may work on it at once.
What is searched is in `suggest`. Options after `--` go to every fit, such as `-- --data.root data/my_songs/shards`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import optuna

from hafm_lightning.cli import DONE, main
from hafm_lightning.cli.runs.curves import metrics_file, read_series

SCORE = "val/loss"


def suggest(trial: optuna.Trial) -> dict[str, object]:
    """The settings of a trial: key of the configuration -> value."""
    return {
        "model.optimizer.learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        "model.backbone.layers": trial.suggest_int("layers", 2, 4),
        "model.guidance_dropout": trial.suggest_float("guidance_dropout", 0.0, 0.2),
    }


def objective(trial: optuna.Trial, config: Path, out: Path, steps: int, others: list[str]) -> float:
    """Train a trial, and return its best validation loss."""
    root = out / f"trial-{trial.number:03d}"
    settings = {
        **suggest(trial),
        "trainer.max_steps": steps,
        "trainer.val_check_interval": max(1, steps // 4),
        "model.optimizer.total_steps": steps,
        "model.optimizer.warmup_steps": min(40, steps // 10),
        "trainer.default_root_dir": root,
    }
    options = [f"--{key}={value}" for key, value in settings.items()]
    if main(["fit", "--config", str(config), *options, *others]) != DONE:
        raise RuntimeError(f"the fit of trial {trial.number} failed; its own lines above say why")
    losses = [value for value in read_series(metrics_file(root))[SCORE].values if math.isfinite(value)]
    return min(losses)


def search(arguments: list[str] | None = None) -> optuna.Study:
    """Run the command line, and return the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("experiments/quickstart/coarse.yaml"))
    parser.add_argument("--out", type=Path, default=Path("logs/optuna"), help="folder of study and runs")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a trial")
    parser.add_argument("others", nargs="*", help="options of every fit, after --")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(given.out / "study.log")))
    study = optuna.create_study(
        study_name=given.config.stem,
        storage=storage,
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    study.optimize(
        lambda trial: objective(trial, given.config, given.out, given.steps, given.others), n_trials=given.trials
    )
    print(f"best {SCORE}: {study.best_value:.4f} in trial {study.best_trial.number} with {study.best_params}")
    return study


if __name__ == "__main__":
    search()
