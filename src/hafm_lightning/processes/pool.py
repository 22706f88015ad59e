"""Work spread over processes of this machine: the same results for any number of workers.

A pool applies a picklable function to units and yields ``(index, result)`` in the order in which they finish.

* Workers are spawned, since a fork of a process that has used threads may hang, and they serve all maps of a pool.
* A worker ends when the process that started it is gone, even if that was killed.
* A pool of one worker starts no process: the work runs here.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeAlias, TypeVar

U = TypeVar("U")
R = TypeVar("R")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that numerical libraries read when they are loaded."""


class Pool(Protocol):
    """Applies work to units. Leaving its ``with`` block ends its workers."""

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """Yield ``(index, work(units[index]))`` as they finish."""

    def __enter__(self) -> Pool:
        """The pool itself."""

    def __exit__(self, *exception: object) -> None:
        """End the workers; after an error without waiting for what they are doing."""


def local_pool(workers: int = 0, threads: int | None = None) -> LocalPool:
    """A pool of this machine: processes, or this process itself for one worker.

    Args:
        workers: Number of processes; 0 is one for each core that this process may use.
        threads: Threads of numerical libraries in each worker; None leaves the number to the libraries.
    """
    workers = workers or usable_cores()
    return SerialPool() if workers == 1 else ProcessPool(workers, threads)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(results: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Results of a map in the order of its units; early results wait for their turn."""
    early: dict[int, R] = {}
    following = 0
    for index, result in results:
        early[index] = result
        while following in early:
            yield early.pop(following)
            following += 1


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Processes that start in the block use ``threads`` threads; the environment is restored after it."""
    saved = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name in THREAD_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(saved)


class SerialPool:
    """Runs everything in this process."""

    processes = 1

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """In order, one after the other."""
        for index, unit in enumerate(units):
            yield index, work(unit)

    def __enter__(self) -> SerialPool:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class ProcessPool:
    """Runs units in processes of this machine, which start when there is work; arguments as of :func:`local_pool`."""

    def __init__(self, workers: int, threads: int | None = None) -> None:
        self.processes, self._threads = workers, threads
        self._environment = ExitStack()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(threads,))

    def map(self, work: Callable[[U], R], units: Sequence[U]) -> Iterator[tuple[int, R]]:
        """In order of completion, with few units in flight; RuntimeError names the units of a worker that died."""
        running: dict[Future[R], int] = {}
        try:
            for index, unit in enumerate(units):
                running[self._pool.submit(work, unit)] = index
                if len(running) >= 2 * self.processes:
                    yield from _finished(running, units)
            while running:
                yield from _finished(running, units)
        finally:
            for future in running:
                future.cancel()

    def __enter__(self) -> ProcessPool:
        if self._threads:
            self._environment.enter_context(thread_limit(self._threads))
        return self

    def __exit__(self, *exception: object) -> None:
        self._environment.close()
        self._pool.shutdown(wait=exception[0] is None, cancel_futures=True)


LocalPool: TypeAlias = SerialPool | ProcessPool
"""A pool of this machine; ``processes`` is the number of its workers."""


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


def _begin_worker(threads: int | None) -> None:
    """Limit the threads, and end when the process that started the worker is gone."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a pool starts workers"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
