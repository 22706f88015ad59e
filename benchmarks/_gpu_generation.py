"""Generation on a GPU: a step beside the time in which its weights and cache can be read, and takes of the presets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _facts import kernel_times_us
from generation import CONTEXT_STEPS, STEPS_TIMED, network_of, random_band, stage_decoder, stage_step, toy_vocal

from hafm_lightning.kernels import for_inference
from hafm_lightning.kernels.cuda import triton_attention
from hafm_lightning.kernels.cuda.decoding import step_trial
from hafm_lightning.kernels.cuda.graphs import FusedDecoder
from hafm_lightning.modeling.decoding import Decoder
from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import CoarseStage
from hafm_lightning.tokens import CLIP_DURATION_S

GPU_TARGETS = {"paper": (0.15, 38 * 0.6), "live": (0.15, 100.0)}
"""Preset -> real-time factor of one clip, and times real time of 32 clips, that are wanted on an H200."""


def time_takes(preset: str) -> dict[str, Any]:
    """A preset's stages at the paper's size: one clip, and 32 at once."""
    wanted_single, wanted_batch = GPU_TARGETS[preset]
    band = random_band(preset, "cuda")
    vocal = toy_vocal(CLIP_DURATION_S)
    band.accompany(vocal)  # warm-up: kernels are chosen
    single = statistics.median(band.accompany(vocal, seed=seed).real_time_factor for seed in range(3))
    takes = band.accompany_batch([vocal] * 32, seeds=list(range(32)))
    return {
        "device": torch.cuda.get_device_name(),
        "kernels": f"steps: {tried_steps()}; whole sequences: {attention_kernels()}",
        "real_time_factor_batch_1": round(single, 4),
        "wanted_batch_1": wanted_single,
        "times_real_time_batch_32": round(1 / takes[0].real_time_factor, 1),
        "wanted_batch_32": wanted_batch,
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def attention_kernels() -> str:
    """What attended over whole sequences so far in this process."""
    chosen = triton_attention.settings.found.values()
    return ", ".join(sorted({f"Triton {setting.tiles}" if setting else "PyTorch's operations" for setting in chosen}))


def tried_steps() -> str:
    """What decoded the steps so far in this process."""
    reasons = set(step_trial.settings.found.values())
    fused = ["CUDA graphs of fused steps"] if None in reasons else []
    others = sorted(reason for reason in reasons if reason is not None)
    return "; ".join(fused + others) or "CUDA graphs of PyTorch's operations"


def step_path(decoder: Decoder) -> str:
    """What decodes the steps of a decoder."""
    if not isinstance(decoder, FusedDecoder):
        return "PyTorch's operations"
    return "CUDA graphs of PyTorch's operations" if decoder.fused is None else "CUDA graphs of fused steps"


def measure_steps(device: str, tiny: bool) -> dict[str, Any]:
    """One guided step of the aligned coarse stage, of 1 and of 32 clips, beside reading its weights and cache once.

    Where fused steps are used, the same step is also measured without them.
    """
    backbone = BackboneConfig(layers=1, width=16, heads=2, feedforward=24) if tiny else BackboneConfig()
    stage = CoarseStage(pattern="flattened", conditioning="aligned", backbone=backbone)
    model = for_inference(network_of(stage, "coarse").model, torch.device(device), "fp32" if tiny else "bf16")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.backbone.parameters())
    block = torch.ones(1 << (16 if tiny else 28), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(function: Callable[[], Any], times: int) -> float:
        function()
        wait()
        began = time.perf_counter()
        for _ in range(times):
            function()
        wait()
        return (time.perf_counter() - began) / times

    bandwidth = 4 * block.numel() / seconds(block.sum, 8)
    found: dict[str, Any] = {"gigabytes_a_second": round(bandwidth / 1e9, 1)}
    for clips in (1, 32):
        decoder = stage_decoder(model, CONTEXT_STEPS if tiny else 1500, clips)
        cache = decoder.cache
        assert cache is not None
        parts = [part[:, :, :, : decoder.step + 1] for part in (cache.keys, cache.values)]
        floor = (weights + sum(part.numel() * part.element_size() for part in parts)) / bandwidth
        found[f"{clips} clips"] = row = {
            "steps_in_cache": decoder.step,
            "milliseconds_reading": round(1000 * floor, 3),
            "paths": {step_path(decoder): time_step(decoder, seconds, floor)},
        }
        if isinstance(decoder, FusedDecoder) and decoder.fused is not None:
            decoder.fused = None
            row["paths"][step_path(decoder)] = time_step(decoder, seconds, floor)
    return found


def time_step(decoder: Decoder, seconds: Callable[[Callable[[], Any], int], float], floor: float) -> dict[str, Any]:
    """Time and kernels of a decoder's step; ``floor`` is the time of reading, in seconds."""
    step = stage_step(decoder)
    for _ in range(STEPS_TIMED // 2):
        step()
    taken, kernels = seconds(step, STEPS_TIMED), kernel_times_us(step)
    return {
        "milliseconds_a_step": round(1000 * taken, 3),
        "share_of_the_reading_bound": round(floor / taken, 3),
        "kernels_a_step": None if kernels is None else len(kernels),
        "milliseconds_of_kernels": None if kernels is None else round(sum(kernels) / 1000, 3),
    }
