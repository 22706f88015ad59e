"""Where the work of ``prepare`` runs: processes of this machine or a Ray cluster; the results are the same.

With Ray, units and results travel through its object store, and only the process that holds the output's lock writes.
So the workers need the songs and the models under the same paths (a shared file system), but not the output. An actor
that dies is replaced and its unit repeated; since a result depends on its unit alone, the shards are the same bytes as
those of local processes on the same kind of device.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hafm_lightning.errors import RequestError
from hafm_lightning.processes.pool import Pool, local_pool, usable_cores

U = TypeVar("U")
R = TypeVar("R")


@dataclass(frozen=True)
class EngineSettings:
    """Where the work runs. It does not change the result.

    Attributes:
        kind: ``local`` (processes of this machine) or ``ray`` (a Ray cluster, through Ray Data).
        workers: Number of worker processes; 0 is one for each core this process may use. With ``ray`` the number of
            actors.
        gpus_per_worker: Share of a GPU that each Ray actor asks for; 0 runs on CPUs.
        cpus_per_worker: Cores that each Ray actor asks for.
        address: Address of the Ray cluster; empty joins the one this machine belongs to, or starts a local one.
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


def make_engine(settings: EngineSettings) -> Pool:
    """The pool that the settings describe."""
    return RayEngine(settings) if settings.kind == "ray" else local_pool(settings.workers)


class UnitActor:
    """An actor on a worker machine; the models that the work loads stay for its next unit."""

    def __init__(self, work: bytes) -> None:
        """``work``: the pickled function."""
        self._work: Callable[[Any], Any] = pickle.loads(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the units of a batch: columns ``index`` and ``unit`` in, ``index``, ``result`` and ``error`` out."""
        results, errors = [], []
        for unit in batch["unit"]:
            try:
                results.append(pickle.dumps(self._work(pickle.loads(unit))))
                errors.append("")
            except Exception as error:  # noqa: BLE001 - raised again by the engine; Ray would hide it in its own frames
                results.append(b"")
                errors.append(f"{type(error).__name__}: {error}")
        return {"index": batch["index"], "result": results, "error": errors}


class RayEngine:
    """Runs units in Ray actors."""

    def __init__(self, settings: EngineSettings) -> None:
        """Join the cluster at ``settings.address`` (or ``$RAY_ADDRESS``), or start one on this machine.

        RequestError if Ray is not installed or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise RequestError(
                f"engine.kind is ray, but Ray Data cannot be imported ({error})\n"
                "pip install 'hafm-lightning[ray]', or set engine.kind: local"
            ) from error
        self._ray = ray
        self._settings = settings
        self._workers = settings.workers or usable_cores()
        address = settings.address or os.environ.get("RAY_ADDRESS", "")
        self._started = not ray.is_initialized()
        if self._started:
            try:
                if address:
                    ray.init(address=address, log_to_driver=False)
                else:
                    cores = max(usable_cores(), math.ceil(self._workers * settings.cpus_per_worker) + 1)
                    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise RequestError(
                    f"no Ray cluster at {address or 'this machine'}: {' '.join(str(error).split())[:200]}\n"
                    "start one by `ray start --head`, or correct engine.address"
                ) from error
        ray.data.DataContext.get_current().enable_progress_bars = False  # the pipeline shows its own
        logging.getLogger("ray.data").setLevel(logging.WARNING)

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """In order of completion; RuntimeError with the message of the actor if the work fails."""
        if not units:
            return
        ray = self._ray
        rows = [{"index": index, "unit": pickle.dumps(unit)} for index, unit in enumerate(units)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            UnitActor,
            fn_constructor_args=[pickle.dumps(work)],
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(self._workers, len(rows))),
            num_cpus=self._settings.cpus_per_worker,
            num_gpus=self._settings.gpus_per_worker or None,
        )
        try:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise RuntimeError(f"the work failed on the Ray cluster: {row['error']}")
                yield int(row["index"]), pickle.loads(row["result"])
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"the Ray cluster failed: {error}") from error

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._started:
            self._ray.shutdown()
