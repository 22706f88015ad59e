"""What this processor has for inference: each operation is tried once, on a small matrix, and its result compared.

oneDNN's packed layers exist on x86 only, in bf16 only with AVX-512 or AVX-NE-CONVERT; no version or name tells.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.base import WeightPrecision
from hafm_lightning.kernels.cpu.compiled_step import CompiledStep, FoldedLayer, norm_factors, rounded
from hafm_lightning.modeling.cache import CachedSteps, KeyValueCache
from hafm_lightning.modeling.transformer import BackboneConfig, Layer, Transformer

TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.05}
"""Largest error beside the largest number of a result that right arithmetic makes."""


@cache
def has(operation: str) -> bool:
    """Whether this processor, with this PyTorch and Numba, runs one of :data:`OPERATIONS` and computes it right."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            return _TRIALS[operation]()
        except (RuntimeError, AttributeError, ImportError, OSError):  # NotImplementedError is a RuntimeError
            return False


def multiplies_bf16() -> bool:
    """Whether whole sequences are multiplied in bf16; without AVX-512 BF16 or AMX oneDNN would widen every number."""
    checks = (getattr(torch.cpu, "_is_avx512_bf16_supported", None), getattr(torch.cpu, "_is_amx_tile_supported", None))
    return any(bool(check()) for check in checks if check is not None) and has("packed bf16")


def _close(found: Tensor, expected: Tensor, precision: WeightPrecision) -> bool:
    """Whether a result is right, as far as a precision goes."""
    lost = (found.float() - expected.float()).abs().max()
    return bool(lost <= TOLERANCE[precision] * expected.abs().max())


def _matrices(dtype: torch.dtype) -> list[Tensor]:
    """Inputs ``[5, 64]``, weights ``[48, 64]`` and biases ``[48]``."""
    return [torch.randn(shape, dtype=torch.float32).to(dtype) for shape in ((5, 64), (48, 64), (48,))]


def _try_packed(precision: WeightPrecision) -> bool:
    x, weight, bias = _matrices(torch.float32 if precision == "fp32" else torch.bfloat16)
    expected, factor = F.linear(x.float(), weight.float(), bias.float()), torch.full((5, 48), 0.5, dtype=x.dtype)
    product = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)  # for this number of rows, but others must work too
    results = [
        pair
        for rows in (1, 5)
        for pair in (
            (product(x[:rows], packed, bias, "none", [], ""), expected[:rows]),
            (product(x[:rows], packed, bias, "gelu", [], "none"), F.gelu(expected[:rows])),
            (product.binary(x[:rows], factor[:rows], packed, bias, "mul"), expected[:rows] / 2),
        )
    ]
    return all(_close(*pair, precision) for pair in results)


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
        step = CompiledStep(config, layers, (weight * norm_factors(network.final_norm), bias), precision)
        caches = [KeyValueCache(config, 2, 2, "cpu", dtype) for dtype in (step.cache_dtype(2), torch.float32)]
        for number in range(2):
            x, places = torch.randn(2, 1, 32, dtype=torch.float32), torch.zeros(1, 1, number + 1, dtype=torch.float32)
            ours, theirs = (CachedSteps(cache, number, places) for cache in caches)
            expected = F.linear(network(x, theirs)[:, 0], weight[0], bias[0])
            if not _close(step(x, ours, None)[:, 0], expected, precision):
                return False
    except NumbaError:
        return False
    return True


_TRIALS: dict[str, Callable[[], bool]] = {
    "packed fp32": partial(_try_packed, "fp32"),
    "packed bf16": partial(_try_packed, "bf16"),
    "int8 rows fp32": partial(_try_int8_rows, torch.float32),
    "int8 rows bf16": partial(_try_int8_rows, torch.bfloat16),
    "step fp32": partial(_try_step, "fp32"),
    "step bf16": partial(_try_step, "bf16"),
    "step int8": partial(_try_step, "int8"),
}
OPERATIONS = tuple(_TRIALS)
"""``packed``: oneDNN's linear layers with blocked weights, their GELU and their product with a factor. ``int8 rows``:
a few rows of that type times int8 weights. ``step``: the compiled decoding step, which is compiled to be tried."""
