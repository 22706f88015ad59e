"""Tile sizes to try for FlexAttention's kernels, and which errors mean that a kernel cannot be built.

Each tile of scores gathers a float32 bias, which the compiler keeps in shared memory while it waits: at head width 64
in half precision the default of a Hopper chip (128 x 128, three stages) needs 245,760 bytes where the chip has 232,448.
So tiles are tried from the largest to the smallest, for forward and backward kernel separately.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

KernelOptions = dict[str, int | bool]
Pass = Literal["forward", "backward"]
_WARPS = 4


@dataclass(frozen=True)
class Tiles:
    """Size of a tile of scores, which divides the 128 steps of a block mask, and how the kernel works through them."""

    queries: int  # of the backward pass for keys and values; the one for queries swaps both
    keys: int  # in the backward pass a multiple of `queries`
    stages: int  # tiles loaded ahead, plus one

    def options(self, kernel: Pass) -> KernelOptions:
        """``kernel_options`` of one of the two kernels."""
        if kernel == "forward":
            return {
                "fwd_BLOCK_M": self.queries,
                "fwd_BLOCK_N": self.keys,
                "fwd_num_stages": self.stages,
                "fwd_num_warps": _WARPS,
                "FORCE_USE_FLEX_ATTENTION": True,  # sequences below 128 steps have a kernel with tiles of its own
            }
        return {
            "bwd_BLOCK_M1": self.queries,  # 1: the pass for keys and values, 2: the one for queries
            "bwd_BLOCK_N1": self.keys,
            "bwd_BLOCK_M2": self.keys,
            "bwd_BLOCK_N2": self.queries,
            "bwd_num_stages": self.stages,
            "bwd_num_warps": _WARPS,
        }

    def __str__(self) -> str:
        return f"{self.queries} x {self.keys}, {self.stages} stage{'s' if self.stages > 1 else ''}"


FORWARD: tuple[Tiles | None, ...] = (None, Tiles(128, 128, 2), Tiles(128, 64, 2), Tiles(64, 64, 2), Tiles(32, 32, 1))
"""Forward tiles in the order in which they are tried; None leaves the choice to PyTorch."""
BACKWARD: tuple[Tiles | None, ...] = (None, Tiles(64, 64, 2), Tiles(32, 64, 1), Tiles(32, 32, 1), Tiles(16, 16, 1))
"""The same for the backward pass."""


@dataclass(frozen=True)
class Setting:
    """A place in both lists of tiles; past the end of the one that counts, no kernel is left."""

    forward: int = 0
    backward: int | None = 0  # None where no gradient is needed

    @property
    def exhausted(self) -> bool:
        """Whether every setting has failed."""
        return self.forward >= len(FORWARD) or (self.backward is not None and self.backward >= len(BACKWARD))

    @property
    def tiles(self) -> dict[Pass, Tiles]:
        """The tiles that are not PyTorch's own choice."""
        backward = None if self.backward is None else BACKWARD[self.backward]
        chosen: dict[Pass, Tiles | None] = {"forward": FORWARD[self.forward], "backward": backward}
        return {kernel: tiles for kernel, tiles in chosen.items() if tiles is not None}

    def options(self) -> KernelOptions | None:
        """``kernel_options``; None for PyTorch's own choice in both passes."""
        options: KernelOptions = {}
        for kernel, tiles in self.tiles.items():
            options |= tiles.options(kernel)
        return options or None

    def after_failure(self, of: Pass | None) -> Setting:
        """With the next smaller tiles for one kernel; exhausted where neither can be built (None)."""
        if of == "backward":
            assert self.backward is not None
            return replace(self, backward=self.backward + 1)
        return replace(self, forward=self.forward + 1 if of == "forward" else len(FORWARD))


class UncompiledError(RuntimeError):
    """FlexAttention was about to run without a compiler, which writes out the scores of all pairs."""


_FAILURES = (
    ("torch._dynamo.exc", "BackendCompilerFailed"),
    ("torch._dynamo.exc", "FailOnRecompileLimitHit"),
    ("torch._inductor.exc", "InductorError"),
    ("torch._inductor.exc", "TritonMissing"),
    ("torch._inductor.exc", "GPUTooOldForTriton"),
    ("torch._inductor.runtime.triton_heuristics", "NoTritonConfigsError"),
    ("torch._inductor.runtime.triton_compat", "OutOfResources"),
    ("torch._inductor.runtime.triton_compat", "PTXASError"),
    ("triton.compiler.errors", "CompilationError"),
    ("triton.runtime.errors", "OutOfResources"),
    ("triton.runtime.errors", "PTXASError"),
    ("subprocess", "CalledProcessError"),  # the C compiler of Triton's launchers
)
"""Module and class of errors that mean: no kernel with this setting on this device."""
_FAILURE_TEXTS = (
    "No valid triton configs",
    "Cannot find a working triton installation",
    "out of resource",
    "Failed to find C compiler",
    "Failed to compute PTX",
    "PTX codegen error",
    "no kernel image is available",
    "PassManager::run failed",
    "failed to translate module to LLVM IR",
    "0 active drivers",
)
"""The same where PyTorch raises a RuntimeError, or its OutOfMemoryError for the chip's shared memory."""


def build_failure(error: Exception) -> str | None:
    """Why a kernel could not be built, in one line; None for other errors, lack of device memory too."""
    for cause in _causes(error):
        if isinstance(cause, torch.OutOfMemoryError) and "out of resource" not in str(cause):
            return None
    # a module that was not imported cannot have raised anything
    classes = [getattr(sys.modules.get(module), name, UncompiledError) for module, name in _FAILURES]
    by_text = isinstance(error, RuntimeError) and any(text in str(error) for text in _FAILURE_TEXTS)
    if not by_text and not isinstance(error, (UncompiledError, *classes)):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what a compiler's error wraps, and what it was raised from."""
    while error is not None:
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__
