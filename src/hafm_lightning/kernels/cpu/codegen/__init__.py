"""Functions for the CPU that are written as LLVM's instructions and compiled when they are first needed.

``vector_code`` writes loops over vectors and compiles them, ``products`` multiplies small matrices, ``attention_*`` are
the two functions of attention, ``norm_rows`` is the gradient of RMS norm, ``threads`` runs them. ``doors`` says what
each function may be given, and is asked before every call. Where nothing can be compiled, :func:`available` says so,
and PyTorch's operations do the same.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether functions can be compiled here: llvmlite is installed and knows this machine.

    Warns once if it is installed and does not work.
    """
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

    from hafm_lightning.kernels.cpu.codegen.threads import run
    from hafm_lightning.kernels.cpu.codegen.vector_code import FLOAT, VectorCode, compiled

    code = VectorCode("double")
    pointer = code.argument(0, FLOAT)
    code.store(code.add(code.load(pointer), code.load(pointer)), pointer)
    numbers = torch.arange(code.lanes, dtype=torch.float32)
    run(compiled(code), [numbers.data_ptr()], 1)
    if not torch.equal(numbers, 2 * torch.arange(code.lanes, dtype=torch.float32)):
        raise ArithmeticError(f"twice 0, 1, 2 ... became {numbers.tolist()}")
