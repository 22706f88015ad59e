"""Settings of the engines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Where the work runs. It does not change the result.

    Attributes:
        kind: ``local`` (processes of this machine) or ``ray`` (a Ray cluster, through Ray Data).
        workers: Number of worker processes; 0 is one for each core this process may use. With ``ray`` the number of
            actors.
        gpus_per_worker: Share of a GPU that each Ray actor asks for; 0 runs on CPUs.
        cpus_per_worker: Cores that each Ray actor asks for.
        address: Of the Ray cluster; empty joins the one this machine belongs to, or starts a local one.
    """

    kind: str = "local"
    workers: int = 0
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    address: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("local", "ray"):
            raise ValueError(f"kind is {self.kind!r}, choose local or ray")
        if self.workers < 0 or self.gpus_per_worker < 0 or self.cpus_per_worker <= 0:
            raise ValueError("workers and gpus_per_worker start at 0, cpus_per_worker must be positive")
