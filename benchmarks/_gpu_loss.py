"""The loss of mixed precision with the kernels of the device, step by step, beside float32 on the CPU without any."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from _training_paths import AUTOCAST

from hafm_lightning.modeling.transformer import BackboneConfig
from hafm_lightning.stages import CoarseStage
from hafm_lightning.tokens import TokenBatch

WANTED = 0.01
"""The largest difference wanted, over the loss in float32."""
MOST_SKIPPED = 20
"""Steps that a loss scaler may skip while it looks for its scale."""


def compare_losses(device: str, tiny: bool, store: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Losses of the same weights and batches over the same steps: in float32 on the CPU, then in 16- and bf16-mixed."""
    steps, clip_s = (5, 0.4) if tiny else (50, 1.0)
    backbone = BackboneConfig(layers=1, width=16, heads=2, feedforward=24) if tiny else BackboneConfig(layers=4)
    torch.manual_seed(0)
    state = stage(backbone, "none").state_dict()
    batches = [learnable_batch(clip_s, number) for number in range(5)]
    exact, _ = losses(backbone, state, batches, steps, "cpu", "32-true", "none")
    found: dict[str, Any] = {"steps": steps, "wanted": WANTED, "32-true on the CPU": [exact[0], exact[-1]]}
    for precision in AUTOCAST:
        given, skipped = losses(backbone, state, batches, steps, device, precision, "auto")
        differences = [abs(a - b) / b for a, b in zip(given, exact, strict=True)]
        found[precision] = {
            "largest_relative_difference": round(max(differences), 6) if all(map(math.isfinite, given)) else None,
            "finite": all(map(math.isfinite, given)),
            "first_and_last": [given[0], given[-1]],
            "steps_that_the_loss_scaler_skipped": skipped,
        }
        store(found)
    return found


def stage(backbone: BackboneConfig, kernels: Any) -> CoarseStage:
    """The recommended coarse stage without random numbers in its steps."""
    return CoarseStage(backbone=backbone, conditioning="aligned", guidance_dropout=0.0, kernels=kernels)


def learnable_batch(clip_s: float, seed: int) -> TokenBatch:
    """Two clips that a stage can learn: each codebook walks through few ids, at a pace that its first one shows."""
    random = torch.Generator().manual_seed(seed)
    layout = stage(BackboneConfig(layers=1, width=16, heads=2, feedforward=24), "none").model.layout
    begin = torch.randint(16, (2, 1, 1), generator=random)
    streams = {}
    for number, stream in enumerate((*layout.conditions, layout.target)):
        time = torch.arange(stream.frames(clip_s)) * 3
        codebook = torch.arange(stream.codebooks)[:, None]
        streams[stream.name] = (begin + time + 5 * codebook + 7 * number) % min(stream.vocabulary, 48)
    return TokenBatch(streams, [f"clip {number}@0.00" for number in range(2)])


def losses(
    backbone: BackboneConfig,
    state: dict[str, torch.Tensor],
    batches: list[TokenBatch],
    steps: int,
    device: str,
    precision: str,
    kernels: str,
) -> tuple[list[float], int]:
    """The loss of each step, and how many steps the loss scaler has skipped; a skipped step is taken again."""
    work = stage(backbone, kernels)
    work.load_state_dict(state)
    work = work.to(device).train()
    optimizer: Any = work.configure_optimizers()
    dtype = AUTOCAST.get(precision)
    if device == "cpu" and dtype is not None:
        dtype = torch.bfloat16  # as Lightning does
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda" and dtype == torch.float16)
    found, skipped = list[float](), 0
    while len(found) < steps and skipped < MOST_SKIPPED:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            loss = work.training_loss(batches[len(found) % len(batches)].to(device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < before:
            skipped += 1
        else:
            found.append(float(loss.detach()))
    if len(found) < steps:
        raise RuntimeError(f"{precision}: the loss scaler skipped {skipped} of {skipped + len(found)} steps")
    return found, skipped
