"""The configurations under experiments/."""

from pathlib import Path

import yaml

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


TRAINING = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if "trainer" in yaml.safe_load(path.read_text())]


def name_of(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


_SMALL = {
    "model.backbone.layers": 1,
    "model.backbone.width": 32,
    "model.backbone.heads": 2,
    "model.backbone.feedforward": 64,
    "data.global_batch_size": 2,
    "trainer.max_steps": 2,
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.val_check_interval": 1,
    "trainer.limit_val_batches": 1,
    "trainer.enable_progress_bar": "false",
}
SMALL_STAGE = [word for name, value in _SMALL.items() for word in (f"--{name}", str(value))]
"""Options that shrink a stage to seconds on a CPU."""
