"""The configurations under experiments/."""

from pathlib import Path

import yaml

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


TRAINING = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if "trainer" in yaml.safe_load(path.read_text())]


def name_of(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))
