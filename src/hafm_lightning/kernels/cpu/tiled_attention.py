"""Attention with a learned relative bias on the CPU, by two compiled functions: tiles of 64 queries by 64 keys.

A tile's scores stay in the processor's cache from the product that makes them to the last one that needs them, which
reaches most of what the processor can multiply; see :mod:`~hafm_lightning.kernels.cpu.codegen.attention_tiles`. Whole
tiles that the mask forbids are left out. Masks and biases of every kind have one form, :class:`TiledBias`. Each head of
each clip is one thread's, so results do not depend on the number of threads.

What the functions cannot take (:mod:`~hafm_lightning.kernels.cpu.codegen.doors`) is computed by PyTorch's operations,
as on other devices (:class:`~hafm_lightning.modeling.attention.PairBias`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hafm_lightning.kernels.base import Twin
from hafm_lightning.kernels.cpu.codegen.doors import (
    ATTENTION_BACKWARD,
    ATTENTION_FORWARD,
    DoesNotFit,
    Door,
    room,
)
from hafm_lightning.kernels.cpu.codegen.threads import run
from hafm_lightning.modeling.attention import PairBias, SequenceBias
from hafm_lightning.modeling.relative_position import RelativePosition, StepPositions


@dataclass(frozen=True)
class TiledBias:
    """Mask and bias, by tiles.

    A key of a tile has a bias for each of the tile's queries, and most of these rows of 64 recur: with a bias by
    distance, in all tiles along a diagonal. Each different one is kept once, at a *place*.

    Attributes:
        steps: ``S``.
        rows: Row of the bias table for each query of each place, uint8 ``[64 places]``.
        first: Number of the first tile of each 64 queries, and of all tiles, int64.
        keys: Which 64 keys each tile has, int64.
        places: Where the biases of each key of each tile begin in ``rows``, int32 ``[tiles, 64]``.
        table_rows: Rows that a bias table must have.

    Raises:
        ValueError: The numbers lead beyond ``steps`` or ``rows``: compiled functions follow them unasked.
    """

    steps: int
    rows: Tensor
    first: Tensor
    keys: Tensor
    places: Tensor
    table_rows: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table_rows", int(self.rows.max()) + 1 if len(self.rows) else 0)
        tiles = len(self.first) - 1
        ends = int(self.first[0]), int(self.first[-1])
        if ends != (0, len(self.keys)) or bool((self.first.diff() < 0).any()):
            raise ValueError(f"first must rise from 0 to the {len(self.keys)} tiles, got {self.first.tolist()}")
        if len(self.keys) and not 0 <= int(self.keys.min()) <= int(self.keys.max()) < tiles:
            raise ValueError(f"keys must lie in {tiles} tiles, got {int(self.keys.min())} to {int(self.keys.max())}")
        if self.places.numel():
            begin, end = int(self.places.min()), int(self.places.max()) + 64
            if not 0 <= begin <= end <= len(self.rows):
                raise ValueError(f"places must lie in {len(self.rows)} rows, got {begin} to {end}")

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        """Attention over the sequence, ``[B, H, S, d]`` -> the same, computed in float32 whatever the inputs are."""
        with torch.autocast("cpu", enabled=False):
            output = tiled_attention(queries.float(), keys.float(), values.float(), table, self)
        return output.to(values.dtype)

    def plain(self, masked: int) -> PairBias:
        """The same for PyTorch's operations; ``masked`` is the table's row for pairs in no tile."""
        edge = (len(self.first) - 1) * 64
        pairs = torch.full((edge, edge), masked, dtype=torch.int64)
        lanes = torch.arange(64)
        for query in range(len(self.first) - 1):
            for tile in range(int(self.first[query]), int(self.first[query + 1])):
                rows = self.rows[self.places[tile].long()[:, None] + lanes].long()  # [keys, queries]
                key = int(self.keys[tile]) * 64
                pairs[query * 64 : query * 64 + 64, key : key + 64] = rows.t()
        return PairBias.of(pairs[: self.steps, : self.steps], masked)

    @classmethod
    def of(cls, module: RelativePosition, positions: StepPositions) -> TiledBias:
        """The tiles of a sequence that hold a pair that ``module`` allows."""
        from hafm_lightning.kernels.cpu.codegen.attention_tiles import TILE

        steps, known = positions.steps, dict[bytes, int]()
        first, keys, places = [0], list[int](), list[int]()
        for start in range(0, steps, TILE):
            stop = min(start + TILE, steps)
            looked_at = stop if module.causal and module.prefix_mask == "causal" else steps
            rows = torch.full((TILE, -(-looked_at // TILE) * TILE), module.masked_row, dtype=torch.uint8)
            rows[: stop - start, :looked_at] = module.rows(
                positions, torch.arange(start, stop), torch.arange(looked_at)
            )
            visible = (rows != module.masked_row).any(0).view(-1, TILE).any(1).nonzero().flatten().tolist()
            rows[stop - start :] = 0  # queries after the last step: any bias that is a number
            columns = rows.t().contiguous().numpy().tobytes()
            for key in visible:
                for at in range(key * TILE * TILE, (key + 1) * TILE * TILE, TILE):
                    places.append(known.setdefault(columns[at : at + TILE], len(known) * TILE))
            keys += visible
            first.append(len(keys))
        by_place = torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8)
        by_key = torch.tensor(places, dtype=torch.int32).view(-1, TILE)
        return cls(steps, by_place, torch.tensor(first), torch.tensor(keys), by_key)


def tiled_attention(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, bias: TiledBias) -> Tensor:
    """Attention over a whole sequence, ``[B, H, S, d]`` -> the same; ``table`` is ``[R, H]``.

    float32 on the CPU goes through the compiled functions, anything else through :meth:`TiledBias.plain`.

    Raises:
        ValueError: ``bias`` is for another number of steps or rows.
    """
    from hafm_lightning.kernels.cpu.codegen.attention_tiles import LANES_AT_MOST

    steps, width = queries.shape[-2:]
    if steps != bias.steps:
        raise ValueError(f"these biases are for {bias.steps} steps, not for {steps}")
    if len(table) < bias.table_rows:
        raise ValueError(f"the bias table has {len(table)} rows, these biases look for {bias.table_rows}")
    inputs, missing = (queries, keys, values), -width % LANES_AT_MOST
    if missing:
        inputs = tuple(F.pad(x, (0, missing)) for x in inputs)  # type: ignore[assignment]
    try:
        output: Tensor = _TiledAttention.apply(*inputs, table, bias, width)  # type: ignore[no-untyped-call]
    except DoesNotFit:
        return bias.plain(len(table) - 1).attend(queries, keys, values, table)
    return output[..., :width] if missing else output


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
        from hafm_lightning.kernels.cpu.codegen.attention_forward import forward_function
        from hafm_lightning.kernels.cpu.codegen.attention_tiles import FORWARD_ARGUMENTS, TILE

        batch, heads, steps, width = queries.shape
        output = room(batch, steps, heads, width).transpose(1, 2)  # heads side by side for what follows
        largest, total = (room(batch * heads, (len(bias.first) - 1) * TILE) for _ in range(2))
        tensors = {"query": queries, "key": keys, "value": values, "output": output, "largest": largest, "total": total}
        call = _Call(ATTENTION_FORWARD, tensors, table, bias, 1 / math.sqrt(unpadded))
        call.run(forward_function(width), FORWARD_ARGUMENTS)
        ctx.save_for_backward(queries, keys, values, table, output, largest.add_(total.log2_()))
        ctx.bias, ctx.unpadded = bias, unpadded
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from hafm_lightning.kernels.cpu.codegen.attention_backward import backward_function
        from hafm_lightning.kernels.cpu.codegen.attention_tiles import BACKWARD_ARGUMENTS

        queries, keys, values, table, output, logarithms = ctx.saved_tensors
        shape = queries.shape
        results = {f"grad_{name}": room(*shape) for name in ("query", "key", "value")}
        grad_table = room(*shape[:2], len(table), dtype=torch.float64, zero=True)
        tensors = {"query": queries, "key": keys, "value": values, "output": output, "gradient": gradient}
        tensors |= {"largest": logarithms, "grad_table": grad_table, **results}
        try:
            call = _Call(ATTENTION_BACKWARD, tensors, table, ctx.bias, 1 / math.sqrt(ctx.unpadded))
        except DoesNotFit:  # hooks of saved tensors may return another type
            return *_plain_gradients((queries, keys, values, table), gradient, ctx.bias, ctx.unpadded), None, None
        call.run(backward_function(shape[-1]), BACKWARD_ARGUMENTS)
        over_clips = grad_table.sum(0)
        over_clips[:, -1] = 0  # the row of -inf is no parameter
        return *results.values(), over_clips.t().to(table.dtype), None, None


def _plain_gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], gradient: Tensor, bias: TiledBias, unpadded: int
) -> tuple[Tensor, ...]:
    """Gradients of queries, keys, values and table by PyTorch's operations, from the first ``unpadded`` columns."""
    with torch.enable_grad():
        queries, keys, values, table = leaves = [x.detach().requires_grad_() for x in inputs]
        queries, keys, values = (x[..., :unpadded] for x in (queries, keys, values))
        output = bias.plain(len(table) - 1).attend(queries, keys, values, table)
    return torch.autograd.grad(output, leaves, gradient[..., :unpadded])


class _Call:
    """The arguments of a compiled function, and what they point to.

    Args:
        door: What the function takes.
        tensors: What differs from function to function, by name.
        table: Bias table ``[R, H]``.
        bias: Mask and bias.
        scale: Factor of the scores.

    Raises:
        DoesNotFit: The function cannot take these tensors.
    """

    def __init__(self, door: Door, tensors: Mapping[str, Tensor], table: Tensor, bias: TiledBias, scale: float) -> None:
        from hafm_lightning.kernels.cpu.codegen.attention_tiles import LOG2_E, TILE, scratch_floats

        batch, heads, steps, width = tensors["query"].shape
        tiles, tasks = len(bias.first) - 1, batch * heads
        self._threads = torch.get_num_threads()
        size, workers = scratch_floats(tiles, width, len(bias.rows)), min(self._threads, tasks)
        factors = room(2)
        factors[0], factors[1] = scale, scale * LOG2_E
        self._held = {name: _beside_each_other(x) for name, x in tensors.items()} | {
            "scratch": room(workers, size), "factors": factors, "table": table.detach().t().contiguous(),
            "rows": bias.rows, "first": bias.first, "keys": bias.keys, "places": bias.places,
        }  # fmt: skip
        sizes = {"tasks": tasks, "padded": tiles * TILE, "workers": workers, "scratch_size": size, "edges": tiles + 1}
        at = door.addresses(self._held, sizes | {"table_rows": len(table), "steps": steps})
        for name, buffer in door.buffers.items():
            if buffer.strided:
                at |= {f"{name}_{axis}": at[f"{name}_{n}"] for n, axis in enumerate(("clip", "head", "step"))}
        self._numbers: dict[str, int] = at | {
            "worker": 0, "workers": workers, "task": 0, "tasks": tasks, "heads": heads, "steps": steps,
            "tiles": tiles, "scratch_size": size, "table_rows": len(table), "row_count": len(bias.rows),
        }  # fmt: skip
        self._numbers.setdefault("total", 0)  # the gradients' function does not read it

    def run(self, function: Any, names: tuple[str, ...]) -> None:
        """Call the function with the arguments of these names."""
        run(function, [self._numbers[name] for name in names], self._threads)


def _beside_each_other(x: Tensor) -> Tensor:
    """The tensor with the numbers of its last dimension beside each other."""
    return x if x.stride(-1) == 1 else x.contiguous()
