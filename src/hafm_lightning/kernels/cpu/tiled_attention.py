"""Attention with a learned relative bias on the CPU, by two compiled functions: tiles of 64 queries by 64 keys.

A tile's scores stay in the processor's cache from the product that makes them to the last one that needs them
(:mod:`~hafm_lightning.kernels.cpu.codegen.attention`). Whole tiles that the mask forbids are left out. One thread
computes each head of each clip, so results do not depend on the number of threads. Tensors that the functions do not
accept (:mod:`~hafm_lightning.kernels.cpu.codegen.doors`) go through PyTorch's operations, as on other devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cpu.codegen.doors import ATTENTION_BACKWARD, ATTENTION_FORWARD, TILE, DoesNotFit, Door, room
from hafm_lightning.kernels.tiles import TilePlan
from hafm_lightning.modeling.attention import SequenceBias
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions


@dataclass(frozen=True)
class TiledBias:
    """Mask and bias of the ``positions`` of a sequence after ``module``, by tiles.

    The tiles are those of :class:`~hafm_lightning.kernels.tiles.TilePlan`. A key of a tile has a bias for each of the
    tile's queries, and most of these rows of 64 recur: in a constant tile all are alike, with a bias by distance they
    are the same in all tiles along a diagonal. Each different one is kept once, at a *place*.
    """

    module: RelativePosition
    positions: StepPositions
    rows: Tensor  # row of the bias table for each query of each place, uint8 [64 places]
    first: Tensor  # number of the first tile of each 64 queries, and of all tiles, int64
    keys: Tensor  # which 64 keys each tile has, int64
    places: Tensor  # where the biases of each key of each tile begin in `rows`, int32 [tiles, 64]

    @cached_property
    def table_rows(self) -> int:
        """Rows that a bias table must have."""
        return int(self.rows.max()) + 1

    @property
    def plain(self) -> SequenceBias:
        """The same for PyTorch's operations."""
        return RelativePosition.sequence_bias(self.module, self.positions)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """As :meth:`SequenceBias.attend`, in float32 whatever the inputs are.

        Raises:
            ValueError: Inputs of another number of steps, or a table with too few rows.
        """
        steps, width = queries.shape[-2:]
        if steps != self.positions.steps:
            raise ValueError(f"these biases are for {self.positions.steps} steps, not for {steps}")
        if len(table) < self.table_rows:
            raise ValueError(f"the bias table has {len(table)} rows, these biases look for {self.table_rows}")
        padding = -width % ATTENTION_FORWARD.multiples["width"]
        with torch.autocast("cpu", enabled=False):
            inputs = [F.pad(x.float(), (0, padding)) if padding else x.float() for x in (queries, keys, values)]
            try:
                output: Tensor = _TiledAttention.apply(*inputs, table, self, width)  # type: ignore[no-untyped-call]
            except DoesNotFit:
                queries, keys, others = (x[..., :width] for x in inputs)
                return self.plain.attend(queries, keys, others, table).to(values.dtype)
        return (output[..., :width] if padding else output).to(values.dtype)

    @classmethod
    def of(cls, module: RelativePosition, positions: StepPositions) -> TiledBias:
        """The tiles of a sequence that hold a pair that ``module`` allows."""
        plan, known = TilePlan.of(module, positions, TILE, TILE), dict[bytes, int]()
        tiles = plan.by_query

        def place(column: bytes) -> int:
            return known.setdefault(column, len(known) * TILE)

        of_patterns = [
            [place(column.tobytes()) for column in pattern.t().contiguous().numpy()] for pattern in plan.patterns
        ]
        places = torch.empty(len(tiles.tile), TILE, dtype=torch.int32)
        lookups = tiles.pattern >= 0
        if of_patterns:
            places[lookups] = torch.tensor(of_patterns, dtype=torch.int32)[tiles.pattern[lookups].long()]
        runs = torch.stack((tiles.run_row, tiles.run_start, tiles.run_stop), dim=1)
        for row, start, stop in runs.tolist():
            if start < stop:
                places[start:stop] = place(bytes([row]) * TILE)
        rows = torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8)
        return cls(module, positions, rows, tiles.edges.long(), tiles.tile.long(), places)


class TiledRelativePosition(Twin, RelativePosition):
    """A relative position whose sequences attend by compiled tiles, on the CPU."""

    def sequence_bias(self, positions: StepPositions) -> SequenceBias:
        """As :meth:`RelativePosition.sequence_bias`."""
        if positions.segment.device.type != "cpu":
            return super().sequence_bias(positions)
        return TiledBias.of(self, positions)


class _TiledAttention(torch.autograd.Function):
    """Gradients for queries, keys, values and the bias table."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, bias: TiledBias, unpadded: int
    ) -> Tensor:
        batch, heads, steps, width = queries.shape
        output = room(batch, steps, heads, width).transpose(1, 2)  # heads side by side for what follows
        largest, total = (room(batch * heads, (len(bias.first) - 1) * TILE) for _ in range(2))
        tensors = {"query": queries, "key": keys, "value": values, "output": output, "largest": largest, "total": total}
        _run(ATTENTION_FORWARD, tensors, table, bias, unpadded)
        ctx.save_for_backward(queries, keys, values, table, output, largest.add_(total.log2_()))
        ctx.bias, ctx.unpadded = bias, unpadded
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # hooks of saved tensors may return another type
        queries, keys, values, table, output, logarithms = (x.float() for x in ctx.saved_tensors)
        results = {f"grad_{name}": room(*queries.shape) for name in ("query", "key", "value")}
        grad_table = room(*queries.shape[:2], len(table), dtype=torch.float64, zero=True)
        tensors = {"query": queries, "key": keys, "value": values, "output": output, "gradient": gradient}
        tensors |= {"largest": logarithms, "grad_table": grad_table, **results}
        _run(ATTENTION_BACKWARD, tensors, table, ctx.bias, ctx.unpadded)
        over_clips = grad_table.sum(0)
        over_clips[:, -1] = 0  # the row of -inf is no parameter
        return *results.values(), over_clips.t().float(), None, None


def _run(door: Door, tensors: Mapping[str, Tensor], table: Tensor, bias: TiledBias, width: int) -> None:
    """Run the function of a door; ``width`` is that of a head without padding, which scales the scores.

    Raises:
        DoesNotFit: The function does not accept these tensors.
    """
    from hafm_lightning.kernels.cpu.codegen import attention

    batch, heads, steps, padded_width = tensors["query"].shape
    tiles, tasks, threads = len(bias.first) - 1, batch * heads, torch.get_num_threads()
    size, workers = attention.scratch_floats(tiles, padded_width, len(bias.rows)), min(threads, tasks)
    factors, scale = room(2), 1 / math.sqrt(width)
    factors[0], factors[1] = scale, scale * attention.LOG2_E
    held = {name: _as_read(x) for name, x in tensors.items()} | {
        "scratch": room(workers, size), "factors": factors, "table": table.detach().t().contiguous(),
        "rows": bias.rows, "first": bias.first, "keys": bias.keys, "places": bias.places,
    }  # fmt: skip
    numbers = {
        "worker": 0, "workers": workers, "task": 0, "tasks": tasks, "steps": steps, "tiles": tiles,
        "padded": tiles * TILE, "edges": tiles + 1, "scratch_size": size, "table_rows": len(table),
    }  # fmt: skip
    given = door.addresses(held, numbers)
    function = attention.forward_function if door is ATTENTION_FORWARD else attention.backward_function
    function(padded_width).run([given[name] for name in door.arguments], threads)


def _as_read(x: Tensor) -> Tensor:
    """The tensor, or a copy whose last dimension is contiguous and which begins at a multiple of 4 bytes."""
    x = x.resolve_neg()
    misaligned = type(x) is Tensor and x.data_ptr() % 4
    return x.clone(memory_format=torch.contiguous_format) if misaligned or x.stride(-1) != 1 else x
