"""Functions in machine code: compiled by LLVM for this processor, and run on several threads without Python's lock."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding as untyped_llvm
import torch

llvm: Any = untyped_llvm


@dataclass(frozen=True)
class CompiledFunction:
    """A function ``void name(int64 *arguments)``."""

    address: int
    engine: Any  # owns the memory at that address

    def run(self, arguments: Sequence[int], threads: int) -> None:
        """Call the function on at most ``threads`` threads with the same whole numbers, and wait for all of them."""
        numbers = (ctypes.c_int64 * len(arguments))(*arguments)
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)
        if threads == 1:
            call(ctypes.addressof(numbers))
            return
        parallel = openmp()
        if parallel is not None:
            parallel(self.address, ctypes.addressof(numbers), threads)
            return
        started = [threading.Thread(target=call, args=(ctypes.addressof(numbers),)) for _ in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()


def compiled(function: Any) -> CompiledFunction:
    """A function of ``llvmlite.ir`` in machine code, after a third of a second; RuntimeError where LLVM cannot."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    function.module.triple, function.module.data_layout = target.triple, str(machine.target_data)
    module = llvm.parse_assembly(str(function.module))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return CompiledFunction(engine.get_function_address(function.name), engine)


def vector_shape() -> tuple[int, int]:
    """Lanes of a vector on this processor, and vectors of each of four rows that its registers hold sums of."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 4
    if features.get("avx2"):
        return 8, 2
    return 4, 4 if features.get("neon") else 2


@lru_cache(maxsize=1)
def openmp() -> Callable[[int, Any, int], None] | None:
    """``(function, arguments, threads)`` of the OpenMP library that PyTorch has loaded, if it is GNU's or alike.

    Other threads would compete with PyTorch's, which look for work for some milliseconds after each operation.
    """
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
