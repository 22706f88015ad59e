"""The gradients of RMS norm as one compiled function, which reads and writes each number once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hafm_lightning.kernels.cpu.codegen.doors import NORM_BACKWARD, DoesNotFit, room
from hafm_lightning.kernels.cpu.codegen.machine_code import CompiledFunction
from hafm_lightning.kernels.cpu.codegen.vector_code import VectorCode

COLUMNS_AT_ONCE = NORM_BACKWARD.multiples["width"]  # a row's width must be a multiple of this
NUMBERS_IN_TASK = 2**14  # that a thread takes at once, in whole rows


def norm_backward(x: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x [..., D]`` and ``weight [D]`` from that of ``x * scale * weight``, with ``scale [..., 1]``.

    ``scale`` is one over the root of the mean square of each row. The number of threads does not change the result.

    Raises:
        DoesNotFit: These are not two to four dimensions of float32 in rows of whole :data:`COLUMNS_AT_ONCE`.
    """
    if not 2 <= x.dim() <= 4 or x.numel() == 0:
        raise DoesNotFit(f"norm_backward: x has the shape {tuple(x.shape)}, not 2 to 4 dimensions with numbers")
    dimensions = (None,) * (4 - x.dim())
    tensors = {"x": x[dimensions], "gradient": gradient[dimensions], "scale": scale[dimensions].contiguous()}
    outer, inner, steps, width = tensors["x"].shape
    rows = max(1, NUMBERS_IN_TASK // width)
    tasks = outer * inner * -(-steps // rows)
    tensors |= {"weight": weight.contiguous(), "grad_x": room(outer, inner, steps, width)}
    tensors |= {"grad_weights": room(tasks, width)}
    given = NORM_BACKWARD.addresses(tensors, {"task": 0, "tasks": tasks, "rows": rows})
    _function(width).run([given[name] for name in NORM_BACKWARD.arguments], torch.get_num_threads())
    return tensors["grad_x"].view(x.shape), tensors["grad_weights"].sum(0)


@lru_cache(maxsize=8)
def _function(width: int) -> CompiledFunction:
    code = VectorCode(NORM_BACKWARD.function, NORM_BACKWARD.arguments)
    builder, offsets = code.builder, range(0, COLUMNS_AT_ONCE, code.lanes)
    inner, steps, rows = (code.value(name) for name in ("inner", "steps", "rows"))
    tensors = [(code.pointer(name), [code.value(f"{name}_{n}") for n in range(3)]) for name in ("x", "gradient")]
    scales, weights, grad_x, grad_weights = map(code.pointer, ("scale", "weight", "grad_x", "grad_weights"))
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
                for offset in offsets:
                    at = code.sum(column, offset)
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
                for offset in offsets:
                    at = code.sum(column, offset)
                    found = code.multiply(code.load(code.at(gradient, at)), code.load(code.at(weights, at)))
                    found = code.multiply_add(code.load(code.at(x, at)), shift, found)
                    code.store(code.multiply(found, scale), code.at(target, at))

            code.loop(width, write, step=COLUMNS_AT_ONCE)

        code.loop(code.smaller(builder.sub(steps, first), rows), row)

    code.tasks(code.value("tasks"), task)
    return code.compiled()
