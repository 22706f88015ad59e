"""Attention with a learned relative bias on the CPU, by two compiled functions: tiles of 64 queries by 64 keys.

A tile's scores stay in the processor's cache from the product that makes them to the last one that needs them, which
reaches most of what the processor can multiply; see :mod:`~hafm_lightning.modeling.compiled.attention_tiles`. Whole
tiles that the mask forbids are left out. Masks and biases of every kind have one form, :class:`TiledBias`. Each head of
each clip is one thread's, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hafm_lightning.modeling.compiled.threads import run
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
    """

    steps: int
    rows: Tensor
    first: Tensor
    keys: Tensor
    places: Tensor

    @classmethod
    def of(cls, module: RelativePosition, positions: StepPositions) -> TiledBias:
        """The tiles of a sequence that hold a pair that ``module`` allows."""
        from hafm_lightning.modeling.compiled.attention_tiles import TILE

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
    """Attention over a whole sequence, float32 ``[B, H, S, d]`` -> the same; ``table`` is float32 ``[R, H]``."""
    from hafm_lightning.modeling.compiled.attention_tiles import LANES_AT_MOST

    width = queries.shape[-1]
    inputs, missing = (queries, keys, values), -width % LANES_AT_MOST
    if missing:
        inputs = tuple(F.pad(x, (0, missing)) for x in inputs)  # type: ignore[assignment]
    output: Tensor = _TiledAttention.apply(*inputs, table, bias, 1 / math.sqrt(width))  # type: ignore[no-untyped-call]
    return output[..., :width] if missing else output


class _TiledAttention(torch.autograd.Function):
    """Gradients for queries, keys, values and the bias table."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, bias: TiledBias, scale: float
    ) -> Tensor:
        from hafm_lightning.modeling.compiled.attention_forward import forward_function
        from hafm_lightning.modeling.compiled.attention_tiles import FORWARD_ARGUMENTS, TILE

        queries, keys, values = (_beside_each_other(x) for x in (queries, keys, values))
        batch, heads, steps, width = queries.shape
        output = queries.new_empty(batch, steps, heads, width).transpose(1, 2)  # heads side by side for what follows
        largest = queries.new_empty(batch * heads, (len(bias.first) - 1) * TILE)
        total = torch.empty_like(largest)
        call = _Call(queries, keys, values, output, table, bias, scale)
        call.numbers |= {"largest": largest.data_ptr(), "total": total.data_ptr()}
        call.run(forward_function(width), FORWARD_ARGUMENTS)
        ctx.save_for_backward(queries, keys, values, table, output, largest.add_(total.log2_()))
        ctx.bias, ctx.scale = bias, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        from hafm_lightning.modeling.compiled.attention_backward import backward_function
        from hafm_lightning.modeling.compiled.attention_tiles import BACKWARD_ARGUMENTS

        queries, keys, values, table, output, logarithms = ctx.saved_tensors
        gradient = _beside_each_other(gradient)
        grad_queries, grad_keys, grad_values = queries.new_empty(3, *queries.shape).unbind()
        grad_table = table.new_zeros(*queries.shape[:2], len(table), dtype=torch.float64)
        call = _Call(queries, keys, values, output, table, ctx.bias, ctx.scale)
        call.place("gradient", gradient)
        call.numbers |= {
            "largest": logarithms.data_ptr(),
            "total": 0,
            "grad_query": grad_queries.data_ptr(),
            "grad_key": grad_keys.data_ptr(),
            "grad_value": grad_values.data_ptr(),
            "grad_table": grad_table.data_ptr(),
        }
        call.run(backward_function(queries.shape[-1]), BACKWARD_ARGUMENTS)
        over_clips = grad_table.sum(0)
        over_clips[:, -1] = 0  # the row of -inf is no parameter
        return grad_queries, grad_keys, grad_values, over_clips.t().to(table.dtype), None, None


def _beside_each_other(x: Tensor) -> Tensor:
    """The tensor with the numbers of a head beside each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Call:
    """The arguments of a compiled function, and what they point to.

    Attributes:
        numbers: Whole numbers and addresses by name.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        output: Tensor,
        table: Tensor,
        bias: TiledBias,
        scale: float,
    ) -> None:
        from hafm_lightning.modeling.compiled.attention_tiles import LOG2_E, scratch_floats

        batch, heads, steps, width = queries.shape
        if steps != bias.steps:
            raise ValueError(f"these biases are for {bias.steps} steps, not for {steps}")
        tiles, tasks = len(bias.first) - 1, batch * heads
        self._threads = torch.get_num_threads()
        size, workers = scratch_floats(tiles, width, len(bias.rows)), min(self._threads, tasks)
        scratch, by_head = torch.empty(workers * size), table.detach().float().t().contiguous()
        factors = torch.tensor([scale, scale * LOG2_E])
        self._held = [scratch, by_head, factors]
        self.numbers: dict[str, int] = {
            "worker": 0, "workers": workers, "task": 0, "tasks": tasks, "heads": heads, "steps": steps, "tiles": tiles,
            "scratch": scratch.data_ptr(), "scratch_size": size, "factors": factors.data_ptr(),
            "table": by_head.data_ptr(), "table_rows": len(table), "rows": bias.rows.data_ptr(),
            "row_count": len(bias.rows), "first": bias.first.data_ptr(), "keys": bias.keys.data_ptr(),
            "places": bias.places.data_ptr(),
        }  # fmt: skip
        for name, tensor in (("query", queries), ("key", keys), ("value", values), ("output", output)):
            self.place(name, tensor)

    def place(self, name: str, tensor: Tensor) -> None:
        """Address of a tensor ``[B, H, S, d]``, and how far its clips, heads and steps lie apart."""
        clip, head, step, _ = tensor.stride()
        self.numbers |= {name: tensor.data_ptr(), f"{name}_clip": clip, f"{name}_head": head, f"{name}_step": step}

    def run(self, function: Any, names: tuple[str, ...]) -> None:
        """Call the function with the arguments of these names."""
        run(function, [self.numbers[name] for name in names], self._threads)
