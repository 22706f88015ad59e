"""Attention alone on a GPU: speed beside FlexAttention without a bias and the causal floor, and parity with float64."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hafm_lightning.kernels.cuda import triton_attention, triton_blocks
from hafm_lightning.kernels.cuda.flex_tiles import build_failure
from hafm_lightning.kernels.cuda.triton_attention import TritonBias
from hafm_lightning.kernels.cuda.triton_blocks import Blocks, Kernel, Setting
from hafm_lightning.kernels.cuda.triton_passes import BackwardPass, forward_pass
from hafm_lightning.modeling.layout import Conditioning, Pattern, SequenceLayout
from hafm_lightning.modeling.relative_position import PrefixMask, RelativePosition, RelativePositionKind, StepPositions

GEOMETRIES: dict[str, tuple[Pattern, Conditioning, RelativePositionKind, PrefixMask]] = {
    "aligned": ("flattened", "aligned", "index", "causal"),
    "prefix, index": ("flattened", "prefix", "index", "causal"),
    "prefix, time": ("flattened", "prefix", "time", "causal"),
    "bidirectional prefix": ("flattened", "prefix", "time", "bidirectional"),
    "delay": ("delay", "prefix", "time", "causal"),
    "all at once": ("nonautoregressive", "prefix", "time", "causal"),
}
TARGETS = {"aligned": 1.35, "prefix, time": 1.7}
"""Geometry -> the most that forward and backward may take, over FlexAttention without a bias."""


def geometry(name: str, frames: int, heads: int, device: str) -> tuple[RelativePosition, StepPositions]:
    """Bias tables with random numbers, and the positions of a coarse stage of ``frames`` frames."""
    pattern, conditioning, kind, prefix_mask = GEOMETRIES[name]
    layout = SequenceLayout.of(
        ["vocal_semantic", "instrumental_semantic"], "instrumental_coarse", pattern, conditioning
    )
    module = RelativePosition(heads, kind, layout.causal, 3 if conditioning == "prefix" else 1, prefix_mask)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.to(device), StepPositions.of(layout.plan(frames), device)


def measure_attention(device: str, frames: int, batch: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of one layer, forward and forward with backward, of each way; the tiles of ours one by one."""
    found: dict[str, Any] = {"batch": batch, "heads": 8, "width": 64, "dtype": "float16"}
    for name in TARGETS:
        module, positions = geometry(name, frames, 8, device)
        shape = (batch, 8, positions.steps, 64)
        qkv = [torch.randn(shape, device=device, dtype=torch.float16).requires_grad_() for _ in range(3)]
        bias, table = TritonBias.of(module, positions), module.table()
        ways: dict[str, Callable[[], Tensor]] = {"ours": lambda b=bias, t=table, x=qkv: b.attend(*x, t)}
        ways["sdpa, causal, no bias"] = lambda x=qkv: F.scaled_dot_product_attention(*x, is_causal=True)
        if device == "cuda":
            ways["flex, causal, no bias"] = flex_without_bias(qkv)
        figures = {way: time_both(function, qkv, device, repeats) for way, function in ways.items()}
        setting = triton_attention.settings.of(qkv[0].device, qkv[0].dtype, 64, training=True)
        flex = figures.get("flex, causal, no bias", {}).get("both_ms")
        found[name] = {
            "steps": positions.steps,
            "milliseconds": figures,
            "kernel": kernel_name(setting),
            "tiles": {key: round(share, 3) for plan in bias.plans.values() for key, share in plan.shares.items()},
            "over_flex_without_bias": round(figures["ours"]["both_ms"] / flex, 2) if flex else None,
            "wanted": TARGETS[name],
            "by_tiles": sweep(bias, table, qkv, device, repeats) if setting is not None else "not run",
        }
    return found


def kernel_name(setting: Setting | None) -> str:
    """What attends, in words."""
    if setting is None:
        return "not Triton: see the warning"
    return "Triton, " + ", ".join(f"{kernel} {blocks}" for kernel, blocks in setting.tiles.items())


def sweep(bias: TritonBias, table: Tensor, qkv: list[Tensor], device: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of each kernel with each size of tiles that can be built (of queries with the table's)."""
    queries, keys, values = (x.detach() for x in qkv)
    spread, found = bias.spread(table.detach(), queries.dtype), dict[str, Any]()
    first = triton_blocks.SIZES["forward"][0]
    results = forward_pass(queries, keys, values, spread, bias.plan(first), first)
    work = BackwardPass.of(torch.randn_like(queries), queries, keys, values, spread, *results)
    ways: dict[Kernel, Callable[[Blocks], object]] = {
        "forward": lambda blocks: forward_pass(queries, keys, values, spread, bias.plan(blocks), blocks),
        "query_gradient": lambda blocks: work.by_query(bias.plan(blocks), blocks),
        "key_gradient": lambda blocks: work.by_key(bias.plan(blocks), blocks),
    }
    for kernel, way in ways.items():
        for blocks in triton_blocks.SIZES[kernel][:-1]:  # the smallest are for chips that have room for nothing else
            try:
                found[f"{kernel} {blocks}"] = round(median_ms(lambda w=way, b=blocks: w(b), device, repeats), 3)
            except Exception as error:
                reason = build_failure(error)  # a size that a chip has no room for is a result
                if reason is None:
                    raise
                found[f"{kernel} {blocks}"] = reason
    return found


def flex_without_bias(qkv: list[Tensor]) -> Callable[[], Tensor]:
    """FlexAttention, compiled, with a causal mask alone."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    steps = qkv[0].shape[-2]
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, steps, steps, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(*qkv, block_mask=mask)


def time_both(function: Callable[[], Tensor], inputs: list[Tensor], device: str, repeats: int) -> dict[str, float]:
    """Median milliseconds of the forward pass, and of both."""
    weight = torch.randn_like(function().detach())

    def forward() -> None:
        with torch.no_grad():
            function()

    def both() -> None:
        torch.autograd.grad(function(), inputs, weight)

    return {
        name: round(median_ms(way, device, repeats), 3) for name, way in (("forward_ms", forward), ("both_ms", both))
    }


def median_ms(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call, after three that are not counted."""
    for _ in range(min(3, repeats)):
        function()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            began = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - began))
    return sorted(times)[len(times) // 2]


def measure_parity(device: str, frames: int) -> dict[str, Any]:
    """Largest differences from float64 over the largest value: outputs, gradients, tables; Triton and PyTorch."""
    found: dict[str, Any] = {}
    for name in GEOMETRIES:
        module, positions = geometry(name, frames, 2, device)
        exact = torch.randn(3, 1, 2, positions.steps, 64, device=device)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            qkv = exact.to(dtype).requires_grad_()
            true = results(written_out(qkv.double(), module, positions), qkv, module)
            bias = TritonBias.of(module, positions)
            ways = {"ours": bias, "PyTorch's operations": bias.plain}
            row: dict[str, Any] = {}
            for way, attention in ways.items():
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    given = results(attention.attend(*qkv, module.table()), qkv, module)
                row[way] = [difference(x, y) for x, y in zip(given, true, strict=True)]
                if caught:
                    row[f"{way}: warning"] = str(caught[0].message)
            found[f"{name}, {dtype}"] = row
    return found | {"columns": ["output", "queries, keys and values", "each table"]}


def results(output: Tensor, qkv: Tensor, module: RelativePosition) -> list[Tensor]:
    """The output, and gradients of a fixed projection of it."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), [qkv, *module.parameters()])]


def written_out(qkv: Tensor, module: RelativePosition, positions: StepPositions) -> Tensor:
    """Attention as in a textbook, in float64."""
    steps = torch.arange(positions.steps, device=qkv.device)
    bias = module.table().double()[module.rows(positions, steps, steps)].permute(2, 0, 1)
    queries, keys, values = qkv
    return (queries @ keys.transpose(-2, -1) / math.sqrt(qkv.shape[-1]) + bias).softmax(-1) @ values


def difference(found: Tensor, true: Tensor) -> float:
    """The largest difference over the largest value."""
    return float(f"{float((found.double() - true.double()).abs().max() / true.double().abs().max()):.2e}")
