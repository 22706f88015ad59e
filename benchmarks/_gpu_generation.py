"""Generation on a GPU: a step beside the time in which its weights and cache can be read, and takes of the presets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _facts import kernels_started
from generation import CONTEXT_STEPS, STEPS_TIMED, network_of, random_band, stage_decoder, stage_step, toy_vocal

from hafm_lightning.kernels import for_inference
from hafm_lightning.kernels.cuda import triton_attention
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
        "kernels": "CUDA graphs of decoding steps; whole sequences: " + attention_kernels(),
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


def measure_steps(device: str, tiny: bool) -> dict[str, Any]:
    """One guided step of the aligned coarse stage, of 1 and of 32 clips, beside reading its weights and cache once."""
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
        step = stage_step(decoder)
        for _ in range(STEPS_TIMED // 2):
            step()
        taken = seconds(step, STEPS_TIMED)
        cache = decoder.cache
        assert cache is not None
        parts = [part[:, :, :, : decoder.step + 1] for part in (cache.keys, cache.values)]
        held = sum(part.numel() * part.element_size() for part in parts)
        floor = (weights + held) / bandwidth
        found[f"{clips} clips"] = {
            "steps_in_cache": decoder.step,
            "milliseconds_a_step": round(1000 * taken, 3),
            "milliseconds_reading": round(1000 * floor, 3),
            "share_of_the_reading_bound": round(floor / taken, 3),
            "kernels_a_step": kernels_started(step),
        }
    return found
