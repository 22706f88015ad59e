"""Where the work of ``prepare`` runs: in this process, in several, or on a Ray cluster; the results are the same."""

from __future__ import annotations

from hafm_lightning.preparation.engines.base import EngineSettings
from hafm_lightning.preparation.engines.ray_engine import RayEngine
from hafm_lightning.processes.pool import Pool, local_pool

__all__ = ["EngineSettings", "Pool", "make_engine"]


def make_engine(settings: EngineSettings) -> Pool:
    """The pool that the settings describe."""
    return RayEngine(settings) if settings.kind == "ray" else local_pool(settings.workers)
