"""What this processor has for inference: each operation is tried once, on a small matrix, and its result compared.

PyTorch's builds differ, and one build does different things on different processors: oneDNN's packed layers exist on
x86 only, in bf16 only with AVX-512 or AVX-NE-CONVERT. So nothing is concluded from a version or a name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.base import WeightPrecision
from hafm_lightning.kernels.cpu.compiled_step import CompiledStep, FoldedLayer, rounded
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.transformer import BackboneConfig, Layer, Transformer

Operation = Literal[
    "packed fp32", "packed bf16", "int8 rows fp32", "int8 rows bf16", "step fp32", "step bf16", "step int8"
]
"""``packed``: oneDNN's linear layers with blocked weights, their GELU and their product with a factor. ``int8 rows``:
a few rows of that type times int8 weights. ``step``: the compiled decoding step
(:mod:`~hafm_lightning.kernels.cpu.compiled_step`), which widens weights of each precision by itself."""
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.05}
"""Largest error beside the largest number of a result that right arithmetic makes."""
_PACKED_FOR_ROWS = 2


@lru_cache(maxsize=len(OPERATIONS))
def has(operation: Operation) -> bool:
    """Whether this processor, with this PyTorch and this Numba, runs an operation and computes what it should.

    Asking for a compiled step compiles it, which takes some ten seconds unless it was compiled before.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            return _TRIALS[operation]()
        except (RuntimeError, AttributeError, ImportError, OSError):  # NotImplementedError is a RuntimeError
            return False


def multiplies_bf16() -> bool:
    """Whether whole sequences are multiplied in bf16: packed layers do so, and faster than in float32.

    Without instructions for bf16 products (x86: AVX-512 BF16 or AMX) oneDNN widens every number, at a loss of time.
    """
    checks = (getattr(torch.cpu, "_is_avx512_bf16_supported", None), getattr(torch.cpu, "_is_amx_tile_supported", None))
    return any(bool(check()) for check in checks if check is not None) and has("packed bf16")


def _close(found: Tensor, expected: Tensor, precision: WeightPrecision) -> bool:
    """Whether a result is right, as far as a precision goes."""
    lost = (found.float() - expected.float()).abs().max()
    return bool(lost <= TOLERANCE[precision] * expected.abs().max())


def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``[5, 64]``, weights ``[48, 64]`` and biases ``[48]``."""
    return tuple(torch.randn(shape, dtype=torch.float32).to(dtype) for shape in ((5, 64), (48, 64), (48,)))  # type: ignore[return-value]


def _try_packed(precision: Literal["fp32", "bf16"]) -> bool:
    x, weight, bias = _matrices(torch.float32 if precision == "fp32" else torch.bfloat16)
    expected, factor = F.linear(x.float(), weight.float(), bias.float()), torch.full((5, 48), 0.5, dtype=x.dtype)
    operations = torch.ops.mkldnn
    packed = operations._reorder_linear_weight(weight, _PACKED_FOR_ROWS)
    for rows in (1, 5):
        part, wanted = x[:rows], expected[:rows]
        results = (
            (operations._linear_pointwise(part, packed, bias, "none", [], ""), wanted),
            (operations._linear_pointwise(part, packed, bias, "gelu", [], "none"), F.gelu(wanted)),
            (operations._linear_pointwise.binary(part, factor[:rows], packed, bias, "mul"), wanted / 2),
        )
        if not all(_close(*result, precision) for result in results):
            return False
    return True


def _try_int8_rows(dtype: torch.dtype) -> bool:
    x, weight, _ = _matrices(dtype)
    levels, scale = rounded(weight.float())
    found = torch.ops.aten._weight_int8pack_mm(x, levels, scale.to(dtype))
    return _close(found, F.linear(x.float(), weight.float()), "int8")


def _try_step(precision: WeightPrecision) -> bool:
    from numba.core.errors import NumbaError

    config = BackboneConfig(layers=1, width=32, heads=1, feedforward=48)
    network = Transformer(config).float().eval()
    layers = [FoldedLayer.of(layer) for layer in network.layers if isinstance(layer, Layer)]
    weight, bias = (torch.randn(shape, dtype=torch.float32) for shape in ((1, 16, 32), (1, 16)))
    try:
        step = CompiledStep(config, layers, (weight, bias), precision)
        both = [KeyValueCache(config, 2, 2, "cpu", dtype) for dtype in (step.cache_dtype(2), torch.float32)]
        scale = torch.full((32,), 32**0.5, dtype=torch.float32)  # the norm's factors, which CompiledStep expects
        for number in range(2):
            x = torch.randn(2, 1, 32, dtype=torch.float32)
            places = torch.zeros(1, 1, number + 1, dtype=torch.float32)
            ours, theirs = (CachedSteps(cache, number, places) for cache in both)
            hidden = network(x, theirs)[:, 0]
            expected = F.linear(hidden / scale, weight[0], bias[0])
            if not step.takes(x, ours) or not _close(step(x, ours, None)[:, 0], expected, precision):
                return False
    except NumbaError:
        return False
    return True


_TRIALS: dict[Operation, Callable[[], bool]] = {
    "packed fp32": partial(_try_packed, "fp32"),
    "packed bf16": partial(_try_packed, "bf16"),
    "int8 rows fp32": partial(_try_int8_rows, torch.float32),
    "int8 rows bf16": partial(_try_int8_rows, torch.bfloat16),
    "step fp32": partial(_try_step, "fp32"),
    "step bf16": partial(_try_step, "bf16"),
    "step int8": partial(_try_step, "int8"),
}
