"""Functions for the CPU that are written as LLVM's instructions and compiled when they are first needed.

``vector_code`` writes loops over vectors, ``products`` multiplies small matrices, ``attention`` and ``norm_rows`` are
the functions, ``machine_code`` compiles and runs them, ``doors`` says what each of them accepts. Where nothing can be
compiled (:func:`available`), PyTorch's operations do the same.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether functions can be compiled here; warns once if llvmlite is installed and does not work."""
    if find_spec("llvmlite") is None:
        return False
    try:
        _try_out()
    except (ImportError, OSError, RuntimeError, ArithmeticError) as error:
        warnings.warn(
            f"llvmlite cannot compile on this machine; using slower PyTorch operations: {error}", stacklevel=2
        )
        return False
    return True


def _try_out() -> None:
    """Compile and run a function that doubles a vector of numbers."""
    import torch

    from hafm_lightning.kernels.cpu.codegen.vector_code import VectorCode

    code = VectorCode("double", ["numbers"])
    pointer = code.pointer("numbers")
    code.store(code.add(code.load(pointer), code.load(pointer)), pointer)
    numbers = torch.arange(code.lanes, dtype=torch.float32)
    code.compiled().run([numbers.data_ptr()], 1)
    if not torch.equal(numbers, 2 * torch.arange(code.lanes, dtype=torch.float32)):
        raise ArithmeticError(f"twice 0, 1, 2 ... became {numbers.tolist()}")
