"""What each compiled function may be given: one declaration a function, asked for before every call.

A compiled function gets addresses and reads what it was written for, whatever lies there. So types, devices, sizes,
distances and alignment are compared here with the function's :class:`Door`; what does not fit raises
:class:`DoesNotFit`, and the caller takes PyTorch's operations instead. Room for results and for work comes from
:func:`room`, which names its type: PyTorch's default type is the user's to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class DoesNotFit(ValueError):
    """A compiled function cannot take these tensors; says which one and why."""


def room(*shape: int, dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
    """Memory on the CPU for what a compiled function writes: not initialised, or zeros."""
    return (torch.zeros if zero else torch.empty)(shape, dtype=dtype, device="cpu")


@dataclass(frozen=True)
class Buffer:
    """One tensor that a compiled function is given.

    Attributes:
        dtype: Its type.
        shape: Its sizes. A name stands for one number throughout a call, given by the caller or by the first tensor.
        strided: Whether only the last dimension must lie in a piece, and the others may lie anywhere; else all do.
        written: Whether the function writes it, so that no two of its numbers may share a place.
    """

    dtype: torch.dtype
    shape: tuple[str | int, ...]
    strided: bool = False
    written: bool = False

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
        if self.strided:
            if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
                return "does not have the numbers of its last dimension beside each other"
        elif not tensor.is_contiguous():
            return "is not contiguous"
        if self.written and _shares_places(tensor):
            return "is written and has several numbers at one place"
        if tensor.data_ptr() % tensor.element_size():
            return f"does not begin at a multiple of {tensor.element_size()} bytes"
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if (tensor.storage_offset() + last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
            return "reaches beyond its memory"  # freed and not yet brought back
        return None


def _shares_places(tensor: Tensor) -> bool:
    """Whether two numbers of a tensor may lie at one place."""
    reach = 0  # of the dimensions looked at
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


@dataclass(frozen=True)
class Door:
    """What a compiled function may be given.

    Attributes:
        function: Its name, for messages.
        buffers: Its tensors by name.
        multiples: Sizes that must be multiples of a number.
    """

    function: str
    buffers: Mapping[str, Buffer]
    multiples: Mapping[str, int] = field(default_factory=dict)

    def addresses(self, tensors: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """The address of each tensor by name; of a strided one also its distances, as ``name_0``, ``name_1``, ...

        Args:
            tensors: All of the function's tensors.
            sizes: Numbers that names of sizes must stand for.

        Raises:
            DoesNotFit: A tensor is not what the function was written for.
        """
        if tensors.keys() != self.buffers.keys():
            raise DoesNotFit(f"{self.function}: {sorted(tensors.keys() ^ self.buffers.keys())} missing or unknown")
        known, found = dict(sizes or {}), dict[str, int]()
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
        return found


_FLOAT = torch.float32
_ROWS = ("outer", "inner", "steps", "width")
_STEPS = ("clips", "heads", "steps", "width")

NORM_BACKWARD = Door(
    "norm_backward",
    {
        "x": Buffer(_FLOAT, _ROWS, strided=True),
        "gradient": Buffer(_FLOAT, _ROWS, strided=True),
        "scale": Buffer(_FLOAT, ("outer", "inner", "steps", 1)),
        "weight": Buffer(_FLOAT, ("width",)),
        "grad_x": Buffer(_FLOAT, _ROWS, written=True),
        "grad_weights": Buffer(_FLOAT, ("tasks", "width"), written=True),
    },
    {"width": 64},
)
"""Sizes to give: ``tasks``."""

_ATTENTION: Mapping[str, Buffer] = {
    "query": Buffer(_FLOAT, _STEPS, strided=True),
    "key": Buffer(_FLOAT, _STEPS, strided=True),
    "value": Buffer(_FLOAT, _STEPS, strided=True),
    "largest": Buffer(_FLOAT, ("tasks", "padded"), written=True),
    "scratch": Buffer(_FLOAT, ("workers", "scratch_size"), written=True),
    "factors": Buffer(_FLOAT, (2,)),
    "table": Buffer(_FLOAT, ("heads", "table_rows")),
    "rows": Buffer(torch.uint8, ("row_count",)),
    "first": Buffer(torch.int64, ("edges",)),
    "keys": Buffer(torch.int64, ("pairs",)),
    "places": Buffer(torch.int32, ("pairs", 64)),
}
ATTENTION_FORWARD = Door(
    "attention_forward",
    {
        **_ATTENTION,
        "output": Buffer(_FLOAT, _STEPS, strided=True, written=True),
        "total": Buffer(_FLOAT, ("tasks", "padded"), written=True),
    },
    {"width": 16, "padded": 64},
)
"""Sizes to give: ``tasks`` (clips times heads), ``padded`` (steps in whole tiles), ``workers``, ``scratch_size``,
``table_rows`` and ``edges`` (tiles of queries and one)."""
ATTENTION_BACKWARD = Door(
    "attention_backward",
    {
        **_ATTENTION,
        "output": Buffer(_FLOAT, _STEPS, strided=True),
        "gradient": Buffer(_FLOAT, _STEPS, strided=True),
        "grad_query": Buffer(_FLOAT, _STEPS, written=True),
        "grad_key": Buffer(_FLOAT, _STEPS, written=True),
        "grad_value": Buffer(_FLOAT, _STEPS, written=True),
        "grad_table": Buffer(torch.float64, ("clips", "heads", "table_rows"), written=True),
    },
    {"width": 16, "padded": 64},
)
"""Sizes to give: as for :data:`ATTENTION_FORWARD`."""


def decode_step(cache_dtype: torch.dtype) -> Door:
    """What a decoding step is given besides its own weights; the cache is float32, or bf16.

    Sizes to give: ``width``, ``layers``, ``heads``, ``head_width`` and, of the bias, ``visible``.
    """
    return Door(
        "decode_step",
        {
            "x": Buffer(_FLOAT, ("rows", "width")),
            "cache": Buffer(cache_dtype, ("layers", 2, "rows", "heads", "capacity", "head_width"), written=True),
            "bias": Buffer(_FLOAT, ("heads", "visible")),
        },
    )
