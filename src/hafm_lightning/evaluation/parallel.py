"""Work spread over processes of one thread each, which small models use better than threads.

:func:`worker_pool` is the one place that starts processes. With one worker, everything runs in this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import torch

Unit = TypeVar("Unit")
Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Processes started inside use ``threads`` threads (their libraries read the environment when they load)."""
    saved = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Pool:
    """Applies picklable work to units.

    Attributes:
        processes: Number of worker processes; 1 stands for this process alone.
        executor: The processes; None where the work runs in this process.
    """

    processes: int = 1
    executor: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[tuple[int, Result]]:
        """Yield ``(index, work(units[index]))`` in the order in which units finish."""
        if self.executor is None:
            yield from ((index, work(unit)) for index, unit in enumerate(units))
            return
        futures = {self.executor.submit(work, unit): index for index, unit in enumerate(units)}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def worker_pool(workers: int) -> Iterator[Pool]:
    """A pool of ``workers`` processes; 0 starts one for each core that this process may use."""
    count = workers or usable_cores()
    if count == 1:
        yield Pool()
        return
    with thread_limit(1):
        # spawn: a fork of a process that has used threads may hang
        context = get_context("spawn")
        executor = ProcessPoolExecutor(count, context, initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield Pool(count, executor)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
