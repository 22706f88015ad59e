"""Where work runs: in this process, in local processes, or on a Ray cluster. The results are the same bytes.

An engine applies a picklable function to units and yields ``(index, result)`` in the order in which they finish.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hafm_lightning.errors import RequestError

U = TypeVar("U")
R = TypeVar("R")


@dataclass(frozen=True)
class EngineSettings:
    """Where the work runs. Never changes what comes out.

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


class Engine(Protocol):
    """Applies work to units. Leaving its ``with`` block ends its workers."""

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """Yield ``(index, work(units[index]))`` as they finish."""

    def __enter__(self) -> Engine:
        """The engine itself."""

    def __exit__(self, *exception: object) -> None:
        """End the workers, without waiting for what they are doing."""


def make_engine(settings: EngineSettings) -> Engine:
    """The engine that the settings describe."""
    if settings.kind == "ray":
        from hafm_lightning.preparation.engines.ray_engine import RayEngine

        return RayEngine(settings)
    workers = settings.workers or usable_cores()
    return SerialEngine() if workers == 1 else LocalEngine(workers)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SerialEngine:
    """Runs everything in this process."""

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """In order, one after the other."""
        for index, unit in enumerate(units):
            yield index, work(unit)

    def __enter__(self) -> SerialEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class LocalEngine:
    """Runs units in processes of this machine.

    They are started afresh (`spawn`), since a fork of a process that has used threads may hang, and serve all maps.
    """

    def __init__(self, workers: int) -> None:
        """``workers``: number of processes, started when there is work for them."""
        context = multiprocessing.get_context("spawn")
        self._workers = workers
        self._pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """In order of completion; few units are in flight, so that results do not pile up.

        Raises:
            RuntimeError: A worker process died (out of memory, a crash); names the units that were running.
        """
        running: dict[Future[R], int] = {}
        try:
            for index, unit in enumerate(units):
                running[self._pool.submit(work, unit)] = index
                if len(running) >= 2 * self._workers:
                    yield from _finished(running, units)
            while running:
                yield from _finished(running, units)
        finally:
            for future in running:
                future.cancel()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=exception[0] is None, cancel_futures=True)


def _finished(running: dict[Future[R], int], units: Sequence[U]) -> Iterator[tuple[int, R]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=running.__getitem__):
        index = running.pop(future)
        try:
            result = future.result()
        except BrokenProcessPool as error:
            names = ", ".join(str(i) for i in sorted({index, *running.values()}))
            raise RuntimeError(
                f"a worker process died (out of memory, or a decoder crashed) while units {names} of {len(units)} were "
                "running; start again with fewer workers to continue"
            ) from error
        yield index, result


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RequestError("workers are started by the pool of a LocalEngine")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
