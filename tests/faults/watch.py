"""What a long run holds on to: memory, open files, threads, disk; and whether one of them grows."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import numpy as np

QUANTITIES = ("memory_mib", "files", "threads", "disk_mib")
WARM_UP = 0.25
"""Share of a run after which it must be steady: caches fill, allocators settle."""


@dataclass
class Watch:
    """Readings in the course of a run. ``folder``: what counts as disk."""

    folder: Path
    readings: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> None:
        """Take one reading."""
        gc.collect()
        status = Path("/proc/self/status").read_text()
        resident_kib = int(status.split("VmRSS:")[1].split()[0])
        disk = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())
        self.readings.append(
            {
                "memory_mib": resident_kib / 1024,
                "files": float(len(list(Path("/proc/self/fd").iterdir()))),
                "threads": float(threading.active_count()),
                "disk_mib": disk / (1 << 20),
            }
        )

    def growth(self) -> dict[str, float]:
        """Growth of each quantity from the end of the warm-up to the end, along a fitted straight line."""
        return {name: growth([reading[name] for reading in self.readings]) for name in QUANTITIES}

    def too_much(self, allowed: Mapping[str, float]) -> list[str]:
        """A line for each quantity that grew by more than is ``allowed``."""
        return [
            f"{name} grew by {grown:.2f}, allowed are {allowed[name]:g}"
            for name, grown in self.growth().items()
            if grown > allowed[name]
        ]

    def figures(self, title: str) -> str:
        """A row for docs/faults.md."""
        last, grown = self.readings[-1], self.growth()
        cells = [f"{last[name]:.0f} ({grown[name]:+.1f})" for name in QUANTITIES]
        return f"| {title} | {' | '.join(cells)} |"


def growth(values: Sequence[float]) -> float:
    """Rise of the straight line through ``values``, without the warm-up, from its first to its last value."""
    steady = np.asarray(values[int(len(values) * WARM_UP) :], dtype=np.float64)
    if len(steady) < 5:
        raise ValueError(f"a slope needs at least 5 steady readings, got {len(steady)}")
    slope = np.polyfit(np.arange(len(steady)), steady, 1)[0]
    return float(slope * (len(steady) - 1))


class WatchSteps(pl.Callback):
    """Reads every ``every`` training steps; found by its name in a configuration.

    Attributes:
        latest: The watch of the newest run of this process.
    """

    latest: Watch | None = None

    def __init__(self, folder: str, every: int) -> None:
        self.every = every
        WatchSteps.latest = self.watch = Watch(Path(folder))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step % self.every == 0:
            self.watch.read()
