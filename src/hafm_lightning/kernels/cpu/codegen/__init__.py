"""Functions for the CPU that are written as LLVM's instructions and compiled when they are first needed.

``vector_code`` writes loops over vectors, ``products`` multiplies small matrices, ``attention`` and ``norm_rows`` are
the functions, ``machine_code`` compiles and runs them, ``doors`` says what each of them accepts. Where nothing can be
compiled (:func:`available`), PyTorch's operations do the same.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import lru_cache
from importlib.util import find_spec

__all__ = ["available"]


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether functions can be compiled here; warns once if llvmlite is installed and does not work."""
    if find_spec("llvmlite") is None:
        return False
    try:
        from hafm_lightning.kernels.cpu.codegen.vector_code import VectorCode

        code = VectorCode("double", ["numbers"])
        pointer = code.pointer("numbers")
        code.store(code.add(code.load(pointer), code.load(pointer)), pointer)
        numbers = (ctypes.c_float * code.lanes)(*range(code.lanes))
        code.compiled().run([ctypes.addressof(numbers)], 1)
        if list(numbers) != [2 * n for n in range(code.lanes)]:
            raise ArithmeticError(f"twice 0, 1, 2 ... became {list(numbers)}")
    except (ImportError, OSError, RuntimeError, ArithmeticError) as error:
        warnings.warn(
            f"llvmlite cannot compile on this machine; using slower PyTorch operations: {error}", stacklevel=2
        )
        return False
    return True
