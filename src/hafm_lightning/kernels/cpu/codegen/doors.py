"""What each compiled function may be given: one declaration for each function, checked before every call.

A compiled function receives addresses and reads what it was written for, whatever is stored there. So tensors are
compared with the function's :class:`Door`; for those that do not fit, the caller uses PyTorch's operations instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

TILE = 64
"""Queries, and keys, of a tile of attention: 16 KiB of scores."""


class DoesNotFit(ValueError):
    """A compiled function cannot take these tensors; says which one and why."""


def room(*shape: int, dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
    """Memory on the CPU for a compiled function; its type is named, since PyTorch's default is the user's to change."""
    return (torch.zeros if zero else torch.empty)(shape, dtype=dtype, device="cpu")


@dataclass(frozen=True)
class Buffer:
    """One tensor that a compiled function is given.

    A name in ``shape`` stands for one number throughout a call, given by the caller or by the first tensor.
    """

    dtype: torch.dtype
    shape: tuple[str | int, ...]
    strided: bool = False  # the last dimension alone must be contiguous
    written: bool = False  # no two of its numbers may share a place

    def misfit(self, tensor: Tensor, sizes: dict[str, int]) -> str | None:
        """Why ``tensor`` is not such a buffer, or None; names that are met first are added to ``sizes``."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return f"is a {type(tensor).__name__} of layout {tensor.layout}"
        if tensor.device.type != "cpu":
            return f"is on {tensor.device}"
        if tensor.dtype != self.dtype:
            return f"is {tensor.dtype}, not {self.dtype}"
        if tensor.is_neg():  # a view that PyTorch negates when it reads it
            return "is kept with the opposite sign"
        if tensor.dim() != len(self.shape):
            return f"has {tensor.dim()} dimensions, not {len(self.shape)}"
        for name, size in zip(self.shape, tensor.shape, strict=True):
            wanted = name if isinstance(name, int) else sizes.setdefault(name, size)
            if size != wanted:
                return f"has the shape {tuple(tensor.shape)}: {size} where {name} is {wanted}"
        if tensor.numel() == 0:
            return "is empty"
        if not self.strided and not tensor.is_contiguous():
            return "is not contiguous"
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            return "does not have the numbers of its last dimension beside each other"
        if self.written and any(size > 1 and not tensor.stride(n) for n, size in enumerate(tensor.shape)):
            return "is written and has several numbers at one place"
        if tensor.data_ptr() % tensor.element_size():
            return f"does not begin at a multiple of {tensor.element_size()} bytes"
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if (tensor.storage_offset() + last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
            return "reaches beyond its memory"  # freed and not yet brought back
        return None


@dataclass(frozen=True)
class Door:
    """What a compiled function may be given."""

    function: str
    buffers: Mapping[str, Buffer]
    multiples: Mapping[str, int] = field(default_factory=dict)  # sizes that must be multiples of a number
    numbers: tuple[str, ...] = ()  # names of the whole numbers before the tensors

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of all arguments in order: numbers, then addresses, each followed by its distances if strided."""
        names = list(self.numbers)
        for name, buffer in self.buffers.items():
            names += [name, *(f"{name}_{n}" for n in range(len(buffer.shape) - 1) if buffer.strided)]
        return tuple(names)

    def addresses(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int] | None = None) -> dict[str, int]:
        """``numbers``, sizes, addresses and distances (``name_0``, ``name_1``, ... of strided tensors) by name.

        ``numbers`` holds further arguments, and sizes that tensors must have.

        Raises:
            DoesNotFit: A tensor is not what the function was written for.
        """
        if tensors.keys() != self.buffers.keys():
            raise DoesNotFit(f"{self.function}: {sorted(tensors.keys() ^ self.buffers.keys())} missing or unknown")
        known, found = dict(numbers or {}), dict[str, int]()
        for name, buffer in self.buffers.items():
            tensor = tensors[name]
            why = buffer.misfit(tensor, known)
            if why is not None:
                raise DoesNotFit(f"{self.function}: {name} {why}")
            found[name] = tensor.data_ptr()
            if buffer.strided:
                found |= {f"{name}_{n}": distance for n, distance in enumerate(tensor.stride()[:-1])}
        for name, divisor in self.multiples.items():
            if known[name] % divisor:
                raise DoesNotFit(f"{self.function}: {name} is {known[name]}, no multiple of {divisor}")
        return known | found


def _floats(*shape: str | int, strided: bool = False, written: bool = False) -> Buffer:
    return Buffer(torch.float32, shape, strided, written)


_ROWS = ("outer", "inner", "steps", "width")
_STEPS = ("clips", "heads", "steps", "width")

NORM_BACKWARD = Door(
    "norm_backward",
    {
        "x": _floats(*_ROWS, strided=True),
        "gradient": _floats(*_ROWS, strided=True),
        "scale": _floats("outer", "inner", "steps", 1),
        "weight": _floats("width"),
        "grad_x": _floats(*_ROWS, written=True),
        "grad_weights": _floats("tasks", "width", written=True),
    },
    {"width": 64},
    ("task", "tasks", "inner", "steps", "rows"),
)
"""``task`` is a counter from 0, of ``tasks`` that take ``rows`` rows each."""

_ATTENTION: Mapping[str, Buffer] = {
    **{name: _floats(*_STEPS, strided=True) for name in ("query", "key", "value")},
    "output": _floats(*_STEPS, strided=True, written=True),
    "largest": _floats("tasks", "padded", written=True),
    "scratch": _floats("workers", "scratch_size", written=True),
    "factors": _floats(2),
    "table": _floats("heads", "table_rows"),
    "rows": Buffer(torch.uint8, ("row_count",)),
    "first": Buffer(torch.int64, ("edges",)),
    "keys": Buffer(torch.int64, ("pairs",)),
    "places": Buffer(torch.int32, ("pairs", TILE)),
}
_SIZES = {"width": 16, "padded": TILE}
_NUMBERS = (
    "worker", "workers", "task", "tasks", "heads", "steps", "tiles", "scratch_size", "table_rows", "row_count",
)  # fmt: skip
ATTENTION_FORWARD = Door(
    "attention_forward", {**_ATTENTION, "total": _floats("tasks", "padded", written=True)}, _SIZES, _NUMBERS
)
"""``worker`` and ``task`` are counters from 0, ``tasks`` is clips times heads, ``padded`` the steps in whole tiles,
``edges`` tiles of queries and one. ``factors`` holds the scale of the scores, alone and times log2(e)."""
_GRADIENTS = {name: _floats(*_STEPS, written=True) for name in ("grad_query", "grad_key", "grad_value")} | {
    "gradient": _floats(*_STEPS, strided=True),
    "grad_table": Buffer(torch.float64, ("clips", "heads", "table_rows"), written=True),
}
ATTENTION_BACKWARD = Door("attention_backward", {**_ATTENTION, **_GRADIENTS}, _SIZES, _NUMBERS)
"""As :data:`ATTENTION_FORWARD`; gradients are written, that of the table is added to what is there."""
