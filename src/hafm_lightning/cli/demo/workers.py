"""Work of the demo spread over the cores: processes of one thread each, which small models use better than threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from hafm_lightning.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Processes started meanwhile use so many threads (their libraries read the environment when they load)."""
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


@contextmanager
def worker_pool() -> Iterator[ProcessPoolExecutor]:
    """A process for each core; those that are still at work are not waited for when the caller fails."""
    with thread_limit(1):
        pool = ProcessPoolExecutor(
            cores(), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        )
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def spread(
    pool: ProcessPoolExecutor,
    function: Callable[..., Result],
    items: Sequence[Item],
    *common: Any,
    description: str,
    on_result: Callable[[Item, Result], None] | None = None,
) -> list[Result]:
    """``function(item, *common)`` for every item, in any order; the results in the order of the items.

    Args:
        pool: The workers.
        function: A function of a module.
        items: What to do.
        common: Further arguments of every call.
        description: Of the progress bar.
        on_result: Called in this process as soon as an item is done.
    """
    results: dict[int, Result] = {}
    with progress(description, total=len(items), unit="parts") as bar:
        futures = {pool.submit(function, item, *common): index for index, item in enumerate(items)}
        for future in as_completed(futures):
            index = futures[future]
            results[index] = future.result()
            if on_result is not None:
                on_result(items[index], results[index])
            bar.advance()
    return [results[index] for index in range(len(items))]
