"""Tile sizes to try for FlexAttention's kernels, and which errors mean that a kernel cannot be built.

FlexAttention's default tiles are chosen for kernels without a captured bias. Here each tile of scores also
gathers a float32 bias, which the compiler keeps in shared memory while it waits: at head width 64 in half
precision the default of a Hopper chip (128 x 128, three stages) asks for 245,760 bytes where the chip has
232,448. So tiles are tried from the largest to the smallest, for forward and backward kernel separately.

Options are those of ``kernel_options``: ``fwd_`` and ``bwd_`` name the kernel, ``BLOCK_M`` and ``BLOCK_N``
the forward tile, ``BLOCK_M1``, ``BLOCK_N1`` the backward tile for keys and values, ``BLOCK_M2``, ``BLOCK_N2``
the one for queries. Tile sizes divide the 128 steps of a block mask; N1 is a multiple of M1, M2 one of N2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

KernelOptions = dict[str, int | bool]


@dataclass(frozen=True)
class Tiles:
    """Size of a tile of scores, and how the kernel works through the tiles.

    Attributes:
        queries: Queries of a tile (of the backward pass for keys and values; the other one swaps both).
        keys: Keys of a tile; in the backward pass a multiple of ``queries``.
        stages: Tiles loaded ahead, plus one.
        warps: Warps that share a tile.
    """

    queries: int
    keys: int
    stages: int
    warps: int

    def forward_options(self) -> KernelOptions:
        """``kernel_options`` of the forward kernel."""
        return {
            "fwd_BLOCK_M": self.queries,
            "fwd_BLOCK_N": self.keys,
            "fwd_num_stages": self.stages,
            "fwd_num_warps": self.warps,
            "FORCE_USE_FLEX_ATTENTION": True,  # sequences below 128 steps have a kernel with tiles of its own
        }

    def backward_options(self) -> KernelOptions:
        """``kernel_options`` of the backward kernel."""
        return {
            "bwd_BLOCK_M1": self.queries,
            "bwd_BLOCK_N1": self.keys,
            "bwd_BLOCK_M2": self.keys,
            "bwd_BLOCK_N2": self.queries,
            "bwd_num_stages": self.stages,
            "bwd_num_warps": self.warps,
        }

    def forward_bytes(self, width: int, itemsize: int) -> int:
        """Shared memory of the forward kernel in bytes; it gives the 245,760 that were measured."""
        loaded = 2 * self.keys * width * itemsize  # keys and values
        return self._bias_bytes() + self.stages * loaded + self.queries * width * itemsize

    def backward_bytes(self, width: int, itemsize: int) -> int:
        """The same for the backward kernel, an estimate: keys and values held, queries and gradients loaded."""
        loaded = 2 * self.queries * width * itemsize
        return self._bias_bytes() + self.stages * loaded + 2 * self.keys * width * itemsize

    def _bias_bytes(self) -> int:
        return (self.stages - 1) * self.queries * self.keys * torch.float32.itemsize

    def __str__(self) -> str:
        return f"{self.queries} x {self.keys}, {self.stages} stage{'s' if self.stages > 1 else ''}"


FORWARD: tuple[Tiles | None, ...] = (
    None,
    Tiles(128, 128, 2, 4),
    Tiles(128, 64, 2, 4),
    Tiles(64, 64, 2, 4),
    Tiles(32, 32, 1, 4),
)
"""Forward tiles in the order in which they are tried; None leaves the choice to PyTorch."""
BACKWARD: tuple[Tiles | None, ...] = (
    None,
    Tiles(64, 64, 2, 4),
    Tiles(32, 64, 1, 4),
    Tiles(32, 32, 1, 4),
    Tiles(16, 16, 1, 4),
)
"""The same for the backward pass."""


@dataclass(frozen=True)
class Setting:
    """A place in both lists of tiles; past the end of the one that counts, no kernel is left.

    Attributes:
        forward: Index into :data:`FORWARD`.
        backward: Index into :data:`BACKWARD`; None where no gradient is needed.
    """

    forward: int = 0
    backward: int | None = 0

    @property
    def exhausted(self) -> bool:
        """Whether every setting has failed."""
        return self.forward >= len(FORWARD) or (self.backward is not None and self.backward >= len(BACKWARD))

    def options(self) -> KernelOptions | None:
        """``kernel_options``; None for PyTorch's own choice in both passes."""
        forward, backward = FORWARD[self.forward], None if self.backward is None else BACKWARD[self.backward]
        chosen = {} if forward is None else forward.forward_options()
        return chosen | ({} if backward is None else backward.backward_options()) or None

    def next_forward(self, width: int, itemsize: int, limit: int | None) -> Setting:
        """With the next smaller forward tiles that need at most ``limit`` bytes of shared memory."""
        following = self.forward + 1
        while limit is not None and following < len(FORWARD):
            tiles = FORWARD[following]
            if tiles is None or tiles.forward_bytes(width, itemsize) <= limit:
                break
            following += 1
        return Setting(following, self.backward)

    def next_backward(self, width: int, itemsize: int, limit: int | None) -> Setting:
        """With the next smaller backward tiles that need at most ``limit`` bytes of shared memory."""
        assert self.backward is not None
        following = self.backward + 1
        while limit is not None and following < len(BACKWARD):
            tiles = BACKWARD[following]
            if tiles is None or tiles.backward_bytes(width, itemsize) <= limit:
                break
            following += 1
        return Setting(self.forward, following)


def shared_memory_bytes(device: torch.device) -> int | None:
    """Shared memory that a block of threads may have at most; None where PyTorch does not tell."""
    if device.type != "cuda":
        return None
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)


def device_name(device: torch.device) -> str:
    """The device's name for a person."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


# --- errors -------------------------------------------------------------------------------------------


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
)
"""Module and class of errors that mean: no kernel with this setting on this device."""
_FAILURE_TEXTS = ("No valid triton configs", "Cannot find a working triton installation", "out of resource")
"""The same where PyTorch raises a RuntimeError, or its OutOfMemoryError for the chip's shared memory."""


def build_failure(error: Exception) -> str | None:
    """Why a kernel could not be built, in one line; None for other errors, lack of device memory too."""
    for cause in _causes(error):
        if isinstance(cause, torch.OutOfMemoryError) and "out of resource" not in str(cause):
            return None
    told = isinstance(error, RuntimeError) and any(text in str(error) for text in _FAILURE_TEXTS)
    if not told and not isinstance(error, (UncompiledError, *_failure_classes())):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _failure_classes() -> Iterator[type[Exception]]:
    """The classes of those modules that are loaded: what was not imported cannot have raised anything."""
    for module, name in _FAILURES:
        found = getattr(sys.modules.get(module), name, None)
        if found is not None:
            yield found


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what a compiler's error wraps, and what it was raised from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        here = waiting.pop()
        if here is not None and id(here) not in seen:
            seen.add(id(here))
            yield here
            waiting += [getattr(here, "inner_exception", None), here.__cause__]
