"""Run a compiled function on several threads at once, without Python's lock.

Where PyTorch brings the OpenMP library that it starts its own threads with, these threads are used: threads of another
kind would share the processors with PyTorch's, which go on looking for work for some milliseconds after each operation.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hafm_lightning.kernels.cpu.codegen.vector_code import CompiledFunction

_Parallel = Callable[[int, Any, int], None]


def run(function: CompiledFunction, arguments: Sequence[int], threads: int) -> None:
    """Call the function on each of ``threads`` threads with the same whole numbers, and wait for all of them.

    It must make do with fewer threads than it was promised: OpenMP may have no more to give.
    """
    numbers = (ctypes.c_int64 * len(arguments))(*arguments)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.address)
    if threads == 1:
        call(ctypes.addressof(numbers))
        return
    parallel = openmp()
    if parallel is not None:
        parallel(function.address, ctypes.addressof(numbers), threads)
        return
    started = [threading.Thread(target=call, args=(ctypes.addressof(numbers),)) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


@lru_cache(maxsize=1)
def openmp() -> _Parallel | None:
    """``(function, arguments, threads)`` of the OpenMP library that PyTorch has loaded, if it is GNU's or alike."""
    if not hasattr(os, "RTLD_NOLOAD"):  # Windows
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        try:
            start = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):  # not loaded, or another interface
            continue
        start.argtypes, start.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return lambda function, arguments, threads: start(function, arguments, threads, 0)
    return None
