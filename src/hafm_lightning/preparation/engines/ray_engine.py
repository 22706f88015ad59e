"""The same work on a Ray cluster, through Ray Data: a pool of actors, each with its share of a GPU.

Units and results travel through Ray's object store, and only the process that holds the output's lock writes. So the
workers need the songs and the models under the same paths (a shared file system), but not the output. An actor that
dies is replaced and its unit repeated; since a result depends on its unit alone, the shards are the same bytes as those
of local processes on the same kind of device.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.engines.base import EngineSettings
from hafm_lightning.processes.pool import usable_cores

U = TypeVar("U")
R = TypeVar("R")


class UnitActor:
    """An actor on a worker machine; keeps the models that the work loads from one unit to the next."""

    def __init__(self, work: bytes) -> None:
        """``work``: the pickled function."""
        self._work: Callable[[Any], Any] = pickle.loads(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the units of a batch: columns ``index`` and ``unit`` in, ``index``, ``result`` and ``error`` out.

        An error travels as text, since Ray's own wrapping hides it under frames of Ray.
        """
        results, errors = [], []
        for unit in batch["unit"]:
            try:
                results.append(pickle.dumps(self._work(pickle.loads(unit))))
                errors.append("")
            except Exception as error:  # noqa: BLE001 - raised again by the engine
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
