"""The gradients of RMS norm as one compiled function, which reads and writes each number once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.modeling.compiled.threads import run
from hafm_lightning.modeling.compiled.vector_code import FLOAT, CompiledFunction, VectorCode, compiled

COLUMNS_AT_ONCE = 64
"""A row's width must be a multiple of this."""
NUMBERS_IN_TASK = 2**14
"""Numbers that a thread takes at once, in whole rows."""


def fits(x: Tensor, gradient: Tensor) -> bool:
    """Whether :func:`norm_backward` takes these tensors."""
    beside = x.stride(-1) == 1 and gradient.stride(-1) == 1
    return beside and 2 <= x.dim() <= 4 and x.shape[-1] % COLUMNS_AT_ONCE == 0 and x.numel() > 0


def norm_backward(x: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x [..., D]`` and ``weight [D]`` from that of ``x * scale * weight``, with ``scale [..., 1]``.

    ``scale`` is one over the root of the mean square of each row. Sums over rows are made in an order of their own,
    whatever the number of threads.
    """
    width = x.shape[-1]
    outer, inner, steps = (1,) * (4 - x.dim()) + x.shape[:-1]
    rows = max(1, NUMBERS_IN_TASK // width)
    grad_x = torch.empty(x.shape)
    grad_weights = torch.empty(outer * inner * -(-steps // rows), width)
    held = scale.contiguous(), weight.contiguous()
    numbers = [0, len(grad_weights), inner, steps, rows]
    for tensor in (x, gradient):
        numbers += [tensor.data_ptr(), *(0,) * (4 - x.dim()), *tensor.stride()[:-1]]
    numbers += [tensor.data_ptr() for tensor in (*held, grad_x, grad_weights)]
    run(_function(width), numbers, torch.get_num_threads())
    return grad_x, grad_weights.sum(0)


@lru_cache(maxsize=8)
def _function(width: int) -> CompiledFunction:
    """Arguments: a counter from 0; tasks; inner size, steps, rows of a task; then x and the gradient with the distances
    of outer, inner and steps each; then scales, weights, gradients of x, and of the weights for each task."""
    code = VectorCode("norm_backward")
    builder, vectors = code.builder, COLUMNS_AT_ONCE // code.lanes
    inner, steps, rows = (code.argument(n) for n in (2, 3, 4))
    tensors = [(code.argument(at, FLOAT), [code.argument(at + 1 + n) for n in range(3)]) for at in (5, 9)]
    scales, weights, grad_x, grad_weights = (code.argument(n, FLOAT) for n in range(13, 17))
    parts = builder.sdiv(code.sum(steps, rows, -1), rows)

    def task(number: Any) -> None:
        pair, first = builder.sdiv(number, parts), code.times(builder.srem(number, parts), rows)
        places = builder.sdiv(pair, inner), builder.srem(pair, inner), first
        begins = [
            code.at(pointer, *(code.times(place, distance) for place, distance in zip(places, distances, strict=True)))
            for pointer, distances in tensors
        ]
        flat, sums = code.sum(code.times(pair, steps), first), code.at(grad_weights, code.times(number, width))
        code.fill(sums, width)

        def row(n: Any) -> None:
            x, gradient = (
                code.at(begin, code.times(n, distances[2]))
                for begin, (_, distances) in zip(begins, tensors, strict=True)
            )
            scale = code.spread(code.number(scales, flat, n))

            def look(column: Any, total: Any) -> list[Any]:
                for v in range(vectors):
                    at = code.sum(column, v * code.lanes)
                    normalised = code.multiply(code.load(code.at(x, at)), scale)
                    product, place = code.multiply(code.load(code.at(gradient, at)), normalised), code.at(sums, at)
                    code.store(code.add(code.load(place), product), place)
                    total = code.multiply_add(product, code.load(code.at(weights, at)), total)
                return [total]

            (total,) = code.loop(width, look, [code.constant(0.0)], COLUMNS_AT_ONCE)
            mean = code.multiply(code.spread(code.total(total)), code.constant(-1 / width))
            shift = code.multiply(mean, scale)
            target = code.at(grad_x, code.times(code.sum(flat, n), width))

            def write(column: Any) -> None:
                for v in range(vectors):
                    at = code.sum(column, v * code.lanes)
                    found = code.multiply(code.load(code.at(gradient, at)), code.load(code.at(weights, at)))
                    found = code.multiply_add(code.load(code.at(x, at)), shift, found)
                    code.store(code.multiply(found, scale), code.at(target, at))

            code.loop(width, write, step=COLUMNS_AT_ONCE)

        code.loop(code.smaller(builder.sub(steps, first), rows), row)

    code.tasks(0, code.argument(1), task)
    return compiled(code)
