"""Tile sizes of the Triton kernels: which of them a chip has room for, and what comes after the smallest.

A program of a kernel keeps its own tile and the tiles that it loads ahead in the shared memory of a processor; smaller
GPUs have half of what a data-centre GPU has (99 KiB on an A40 or RTX 4090, 163 on an A100, 227 on an H100 or H200).
The need is computed here, so that a kernel that cannot start is not even compiled; what is computed is an upper
estimate, and a kernel that fails all the same gives way to the next smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import torch

Kernel = Literal["forward", "backward"]

OLDEST = (8, 0)
"""Compute capability from which on tiles are loaded ahead (Ampere); older chips are left to PyTorch's operations."""


@dataclass(frozen=True)
class Blocks:
    """A tile of scores, and how a program works through its list of them.

    Attributes:
        queries: Queries of a tile, a power of two from 16 on.
        keys: Keys of a tile, likewise.
        warps: Warps of 32 threads in a program.
        stages: Tiles loaded ahead, plus one.
    """

    queries: int
    keys: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.queries} x {self.keys}, {self.stages} stage{'s' if self.stages > 1 else ''}"

    def shared_bytes(self, kernel: Kernel, width: int, element_bytes: int) -> int:
        """Shared memory that a program needs at most.

        Args:
            kernel: Forward kernel, or the larger of the two backward ones.
            width: Width of a head, as padded.
            element_bytes: Bytes of a number of queries, keys and values.
        """
        row, pairs = width * element_bytes, self.queries * self.keys
        if kernel == "forward":
            own, ahead = self.queries * row, 2 * self.keys * row  # keys and values
            written = pairs * max(element_bytes, 4)  # weights on their way to the second product, or rows to scores
        else:
            longest = max(self.queries, self.keys)
            own, ahead = 2 * longest * row, 2 * longest * row + 2 * longest * 4  # with logarithms and levels
            written = 2 * pairs * element_bytes + pairs * 4  # weights and gradients of scores, and one transposed
        return own + self.stages * ahead + written


FORWARD = (
    Blocks(128, 128, 8, 3),
    Blocks(128, 64, 4, 3),
    Blocks(64, 64, 4, 2),
    Blocks(32, 32, 2, 1),
    Blocks(16, 16, 1, 1),
)
"""Tiles of the forward kernel in the order in which they are tried."""
BACKWARD = (
    Blocks(128, 64, 8, 3),
    Blocks(64, 64, 4, 2),
    Blocks(64, 32, 4, 1),
    Blocks(32, 32, 2, 1),
    Blocks(16, 16, 1, 1),
)
"""The same for the backward kernels."""


@dataclass(frozen=True)
class Chip:
    """What a device has.

    Attributes:
        name: For messages.
        shared_bytes: Shared memory that a program may have.
        capability: Compute capability; None for Triton's interpreter, which has no limits.
    """

    name: str
    shared_bytes: int
    capability: tuple[int, int] | None

    @classmethod
    def of(cls, device: torch.device) -> Chip:
        """The chip of a device; a CPU runs the kernels in Triton's interpreter."""
        if device.type != "cuda":
            return cls("Triton's interpreter", 1 << 40, None)
        known = torch.cuda.get_device_properties(device)
        # PyTorch before 2.7 does not tell; 48 KiB is what every chip gives without asking
        shared = getattr(known, "shared_memory_per_block_optin", getattr(known, "shared_memory_per_block", 48 << 10))
        return cls(known.name, int(shared), (known.major, known.minor))

    @property
    def misfit(self) -> str | None:
        """Why no kernel is tried on this chip, or None."""
        if self.capability is None or self.capability >= OLDEST:
            return None
        return f"compute capability {self.capability[0]}.{self.capability[1]}, the kernels need {OLDEST[0]}.{OLDEST[1]}"


@dataclass(frozen=True)
class Setting:
    """A place in both lists of tiles; past the end of the one that counts, no kernel is left."""

    forward: int = 0
    backward: int | None = 0  # None where no gradient is needed

    @property
    def exhausted(self) -> bool:
        """Whether every size has failed."""
        return self.forward >= len(FORWARD) or (self.backward is not None and self.backward >= len(BACKWARD))

    @property
    def tiles(self) -> dict[Kernel, Blocks]:
        """The tiles in use."""
        chosen: dict[Kernel, Blocks] = {"forward": FORWARD[self.forward]}
        return chosen if self.backward is None else chosen | {"backward": BACKWARD[self.backward]}

    def after_failure(self, of: Kernel) -> Setting:
        """With the next smaller tiles for one kernel."""
        if of == "forward":
            return replace(self, forward=self.forward + 1)
        assert self.backward is not None
        return replace(self, backward=self.backward + 1)

    @classmethod
    def largest(cls, chip: Chip, width: int, element_bytes: int, training: bool) -> Setting:
        """The largest tiles that a chip has room for; exhausted where none fit."""
        setting = cls(backward=0 if training else None)
        kernels: tuple[Kernel, ...] = ("forward", "backward") if training else ("forward",)
        for kernel in kernels:
            while not setting.exhausted and (
                setting.tiles[kernel].shared_bytes(kernel, width, element_bytes) > chip.shared_bytes
            ):
                setting = setting.after_failure(kernel)
        return setting


def padded(width: int) -> int:
    """The width of a head as the kernels compute it: a power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def unusable(device: torch.device) -> str | None:
    """Why Triton cannot be used at all, or None."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda":
        return None
    from triton import knobs

    return None if knobs.runtime.interpret else f"{device.type} devices have Triton's interpreter alone"
