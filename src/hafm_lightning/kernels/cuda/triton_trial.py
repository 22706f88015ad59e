"""The trial of tile sizes: can the kernels be built here, and do they compute what PyTorch computes?

A compiler for a new chip, or a new version of it, may refuse a kernel, or build a wrong one. So each setting runs once
on random numbers, forward and backward, before it is used, and every result is compared with attention written out in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hafm_lightning.kernels.cuda.flex_tiles import build_failure
from hafm_lightning.kernels.cuda.triton_blocks import Kernel, Setting
from hafm_lightning.kernels.cuda.triton_passes import BackwardPass, SpreadTable, forward_pass, precision_of
from hafm_lightning.kernels.tiles import TilePlan
from hafm_lightning.modeling.relative_position import MAX_DISTANCE_STEPS, RelativePosition, StepPositions

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference over the largest value; ten times what the type explains."""
REDUCED = 1e-2
"""The same for float32 that is multiplied with fewer digits (TF32)."""


def first_failure(setting: Setting, device: torch.device, dtype: torch.dtype, width: int) -> tuple[Kernel, str] | None:
    """Which kernel cannot be built, or is wrong, and why; None where all are right.

    Args:
        setting: Tiles to try.
        device: Where.
        dtype: Type of queries, keys and values.
        width: Width of a head.
    """
    largest = max(max(blocks.queries, blocks.keys) for blocks in setting.tiles.values())
    steps = MAX_DISTANCE_STEPS + 2 * largest + 9  # some tiles are constant, some look-ups, and the last one has an end
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        module = RelativePosition(1, "index").to(device)
        random = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
        positions = StepPositions(torch.zeros(steps, dtype=torch.int64), torch.arange(steps), 0)
        positions = StepPositions(positions.segment.to(device), positions.ticks.to(device), 0)
        numbers = torch.randn(4, 1, 1, steps, width, generator=random).to(device, dtype)
        reached: Kernel = "forward"
        try:
            for reached, found, expected in _results(setting, module, positions, numbers):
                worst = max((_difference(x, y) for x, y in zip(found, expected, strict=True)), default=0.0)
                full = dtype != torch.float32 or precision_of(dtype) == "ieee"
                if not worst <= (TOLERANCE[dtype] if full else REDUCED):  # what is no number is wrong too
                    return reached, f"its results differ from PyTorch's by {worst:.1g} of the largest value"
        except Exception as error:
            reason = build_failure(error)
            if reason is None:
                raise
            return reached, reason
    return None


def _results(
    setting: Setting, module: RelativePosition, positions: StepPositions, numbers: Tensor
) -> Iterator[tuple[Kernel, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Each kernel, what it computes, and what is right; a kernel that fails does so where its name has come."""
    tiles, (queries, keys, values, gradient) = setting.tiles, numbers
    table = module.table()
    spread = SpreadTable.of(table, queries.dtype)
    plans = {kernel: TilePlan.of(module, positions, blocks.queries, blocks.keys) for kernel, blocks in tiles.items()}
    output, of_queries, of_keys, of_values, of_table = _written_out(module, positions, numbers, table)
    yield "forward", (), ()
    found = forward_pass(queries, keys, values, spread, plans["forward"], tiles["forward"])
    yield "forward", found[:1], (output,)
    work = BackwardPass.of(gradient, queries, keys, values, spread, *found)
    if "query_gradient" in tiles:
        yield "query_gradient", (), ()
        grad, grad_table = work.by_query(plans["query_gradient"], tiles["query_gradient"])
        yield "query_gradient", (grad, grad_table[:-1]), (of_queries, of_table[:-1])
    if "key_gradient" in tiles:
        yield "key_gradient", (), ()
        yield "key_gradient", work.by_key(plans["key_gradient"], tiles["key_gradient"]), (of_keys, of_values)


def _written_out(
    module: RelativePosition, positions: StepPositions, numbers: Tensor, table: Tensor
) -> tuple[Tensor, ...]:
    """Attention as in a textbook, in float64: output, and gradients of queries, keys, values and table."""
    steps = torch.arange(positions.steps, device=numbers.device)
    rows = module.rows(positions, steps, steps)
    queries, keys, values, gradient = numbers.double()
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (queries, keys, values, table.double())]
        bias = inputs[3].t()[:, rows]  # [H, S, S]
        scores = inputs[0] @ inputs[1].transpose(-2, -1) / math.sqrt(queries.shape[-1]) + bias
        output = scores.softmax(-1) @ inputs[2]
        return output.detach(), *torch.autograd.grad(output, inputs, gradient)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())
