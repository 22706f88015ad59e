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

Kernel = Literal["forward", "query_gradient", "key_gradient"]

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
        lookup_stages: The same for look-ups, whose bias is loaded too.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    lookup_stages: int = 1

    def __str__(self) -> str:
        return f"{self.queries} x {self.keys}, {self.stages} stage{'s' if self.stages > 1 else ''}"

    def shared_bytes(self, kernel: Kernel, width: int, element_bytes: int) -> int:
        """Shared memory that a program needs at most.

        Args:
            kernel: Which kernel.
            width: Width of a head, as padded.
            element_bytes: Bytes of a number of queries, keys and values.
        """
        row, pairs = width * element_bytes, self.queries * self.keys
        numbers = {"forward": 1, "query_gradient": 2, "key_gradient": 2}[kernel]  # tiles of its own: queries and slopes
        own, other = (self.keys, self.queries) if kernel == "key_gradient" else (self.queries, self.keys)
        ahead = 2 * other * (row + (4 if kernel == "key_gradient" else 0))  # with logarithms and levels of queries
        lookup = ahead + pairs * element_bytes
        written = pairs * element_bytes  # weights or gradients of scores on their way to a product
        return numbers * own * row + max(self.stages * ahead, self.lookup_stages * lookup) + written


SIZES: dict[Kernel, tuple[Blocks, ...]] = {
    "forward": (Blocks(64, 64, 4, 3), Blocks(64, 32, 4, 2), Blocks(32, 32, 2, 1), Blocks(16, 16, 1, 1)),
    "query_gradient": (Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 1), Blocks(32, 32, 2, 1), Blocks(16, 16, 1, 1)),
    "key_gradient": (Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 1), Blocks(32, 32, 2, 1), Blocks(16, 16, 1, 1)),
}
"""Tiles of each kernel in the order in which they are tried.

The first of each was the fastest, or within 3 % of it, of nine on an H200 (float16, head width 64, 12 clips of 3000 and
4000 steps): larger ones keep fewer programs on a processor, and more of their tiles are look-ups.
"""


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
    """A place in the list of each kernel; past the end of one, no tiles are left.

    Attributes:
        forward: Place of the forward kernel.
        query_gradient: Place of the kernel for gradients of queries; None where no gradient is needed.
        key_gradient: The same for keys and values.
    """

    forward: int = 0
    query_gradient: int | None = 0
    key_gradient: int | None = 0

    @classmethod
    def first(cls, training: bool) -> Setting:
        """The first tiles of each list."""
        return cls() if training else cls(0, None, None)

    @property
    def places(self) -> dict[Kernel, int]:
        """Place of each kernel that is needed."""
        places: dict[Kernel, int | None] = {
            "forward": self.forward, "query_gradient": self.query_gradient, "key_gradient": self.key_gradient,
        }  # fmt: skip
        return {kernel: place for kernel, place in places.items() if place is not None}

    @property
    def exhausted(self) -> bool:
        """Whether every size of a kernel has failed."""
        return any(place >= len(SIZES[kernel]) for kernel, place in self.places.items())

    @property
    def tiles(self) -> dict[Kernel, Blocks]:
        """The tiles in use."""
        return {kernel: SIZES[kernel][place] for kernel, place in self.places.items()}

    def after_failure(self, of: Kernel) -> Setting:
        """With the next smaller tiles for one kernel."""
        return replace(self, **{of: self.places[of] + 1})

    @classmethod
    def largest(cls, chip: Chip, width: int, element_bytes: int, training: bool) -> Setting:
        """The largest tiles that a chip has room for; exhausted where none fit."""
        setting = cls.first(training)
        for kernel in setting.places:
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
