"""Print the size and cost of a configuration as one JSON object; no weights are created.

Its keys: stage, parameters, conditions, target, pattern, conditioning, streams, clip_s, sequence_steps, and
global_batch_size        clips of an optimizer step, over all devices and accumulated batches
devices                  those of the configuration; auto counts the GPUs of this machine
accumulate_grad_batches  batches of a device that make a step
batch_size               clips of a batch on one device
tokens_per_step          target tokens of a step
flops_per_step           forward and backward pass of a step, over all devices
sent_mib_per_step        what each device sends to average gradients in float32 over all (DDP)
memory_gib               estimated peak of training on one batch: on a GPU with mixed precision, and on the CPU (the
                         whole process, at the configured precision)
gpu_memory_parts_gib     what the bytes in use on the GPU hold
hours                    predicted for trainer.max_steps on the GPU of --gpu, with the milliseconds of a step; without
                         validation and waiting for other devices; null for unknown GPUs and in full precision
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from hafm_lightning.cli.fit.predicted_time import batch_seconds
from hafm_lightning.cli.fit.training import StageCLI, quiet_lightning
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_model import TokenModelConfig
from hafm_lightning.stages import Stage
from hafm_lightning.tokens import CLIP_DURATION_S
from hafm_lightning.training.batch_division import divided
from hafm_lightning.training.gpus import PEAK_TFLOPS, chip_of

Path = Literal["cpu", "cpu-mixed", "cuda-mixed"]
"""Implementations whose memory is known: float32 on the CPU, and autocast to half precision on CPU or CUDA."""

MOST_CLIP_S = 3600.0
GIB = 2**30
PROCESS_GIB = 0.5
"""Memory of Python, PyTorch and Lightning on the CPU without a model."""
HELD_PER_BYTE_IN_USE = {"cpu": 1.35, "gpu": 1.1}
"""Bytes that the allocators hold for each byte in use: the C library keeps much of what is freed between two steps.
Measured on the CPU (semantic and coarse stage: 1.24 to 1.5), assumed for the GPU."""
LAYER_BYTES: dict[Path, tuple[int, int, int, int]] = {
    # two residual streams, both norms' outputs, projected and normalised queries, keys, values, mixed values;
    # GEGLU's expanded rows and gates; the log-sum-exp of each query
    "cpu": (40, 12, 12, 8),
    # the same with half-precision copies for the products, attention itself in float32
    "cpu-mixed": (54, 8, 12, 8),
    # compiled layers compute norms and gates again in the backward pass, and keep what enters a product: half-precision
    # norms' outputs, queries, keys and values before and after their norms, mixed values; one float32 stream
    "cuda-mixed": (20, 6, 12, 8),
}
"""Bytes that autograd keeps of a layer at each step: for each of the width, of GEGLU's inner width, and of the heads;
and a rest. On CUDA near what was measured (:data:`~hafm_lightning.cli.fit.predicted_time.MEASURED`)."""
LOGIT_BYTES: dict[Path, int] = {"cpu": 16, "cpu-mixed": 20, "cuda-mixed": 20}
"""For each logit: the stacked logits, rows for the cross-entropy, log-probabilities, gradients of the backward pass."""


def activation_bytes(config: TokenModelConfig, clips: int, frames: int, path: Path) -> int:
    """Bytes that autograd keeps of the layers: of all, or with ``checkpoint_layers`` of one layer and all inputs."""
    backbone, steps = config.backbone, clips * config.layout.plan(frames).steps
    width, inner, heads, rest = LAYER_BYTES[path]
    kept = width * backbone.width + inner * backbone.inner_width + heads * backbone.heads + rest
    if backbone.checkpoint_layers:
        return steps * (kept + backbone.layers * 4 * backbone.width)
    return steps * backbone.layers * kept


def memory_parts(config: TokenModelConfig, parameters: int, clips: int, frames: int, path: Path) -> dict[str, int]:
    """Bytes in use by what they hold; gradients come as activations go, so that the peak is less than the sum."""
    layout = config.layout
    codebooks = 1 if layout.pattern == "nonautoregressive" else layout.target.codebooks
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "moments": 8 * parameters,
        "half_precision_weights": 0 if path == "cpu" else 2 * parameters,
        "activations": activation_bytes(config, clips, frames, path),
        "logits": clips * frames * codebooks * layout.target.vocabulary * LOGIT_BYTES[path],
    }


def training_bytes(config: TokenModelConfig, parameters: int, clips: int, frames: int, path: Path) -> int:
    """Peak bytes of a training step: at the start of the backward pass, or in the optimizer's step if that is more."""
    parts = memory_parts(config, parameters, clips, frames, path)
    step = parts["weights"] + parts["gradients"] + parts["moments"]
    return max(sum(parts.values()) - parts["gradients"], step)


def devices_of(devices: list[int] | str | int, accelerator: str) -> int:
    """The number of devices that ``trainer.devices`` means on this machine: a number, ``auto``, or indices."""
    if devices in ("auto", -1, "-1"):
        return max(torch.cuda.device_count(), 1) if accelerator != "cpu" else 1
    if isinstance(devices, str) and "," in devices:
        devices = [int(index) for index in devices.split(",") if index.strip()]
    return len(devices) if isinstance(devices, list) else int(devices)


def batches_of(config: Any, data: Any) -> dict[str, int]:
    """Clips of a step, and how they are divided; RequestError if they do not divide.

    Args:
        config: The configuration of the fit.
        data: Settings of its data module.
    """
    processes = devices_of(config.trainer.devices, config.trainer.accelerator) * config.trainer.num_nodes
    accumulated = config.trainer.accumulate_grad_batches
    if data.get("global_batch_size"):
        clips = divided(data["global_batch_size"], processes, accumulated)
    else:
        clips = int(data.get("batch_size") or 1)
    return {
        "global_batch_size": clips * processes * accumulated,
        "devices": processes,
        "accumulate_grad_batches": accumulated,
        "batch_size": clips,
    }


def predicted_hours(
    model: TokenModelConfig, batches: Mapping[str, int], frames: int, max_steps: int, gpu: str | None
) -> dict[str, Any] | None:
    """Hours of a run in half precision on the GPU ``gpu``, and milliseconds of a step; None for one that is unknown."""
    chip = None if gpu is None else chip_of(gpu)
    if chip is None:
        return None
    step_s = batches["accumulate_grad_batches"] * batch_seconds(model, batches["batch_size"], frames, chip)
    hours = round(max_steps * step_s / 3600, 1) if max_steps > 0 else None
    return {"gpu": chip, "step_ms": round(1000 * step_s, 1), "max_steps": max_steps, "hours": hours}


def this_gpu() -> str | None:
    """Name of the first GPU of this machine."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def describe(arguments: Sequence[str], clip_s: float | None = None, gpu: str | None = None) -> dict[str, Any]:
    """The facts about a configuration for clips of ``clip_s`` seconds; RequestError if it does not train a stage."""
    with quiet_lightning(), torch.device("meta"):
        cli = StageCLI("fit", arguments, build="model")
    stage, config = cli.model, cli.config["fit"]
    if not isinstance(stage, Stage):
        raise RequestError(f"{type(stage).__name__} is not a stage of this project\nname one in model.class_path")
    data = config.data.init_args if config.get("data") is not None else {}
    seconds = clip_s if clip_s is not None else data.get("crop_s") or CLIP_DURATION_S
    batches = batches_of(config, data)
    clips, devices = batches["batch_size"], batches["devices"]
    layout, model = stage.model.layout, stage.model.config
    frames = layout.target.frames(seconds)
    parameters = sum(parameter.numel() for parameter in stage.parameters())
    mixed = "16" in str(config.trainer.precision)
    name = this_gpu() if gpu is None else gpu
    on_cpu = training_bytes(model, parameters, clips, frames, "cpu-mixed" if mixed else "cpu")
    on_gpu = training_bytes(model, parameters, clips, frames, "cuda-mixed")
    parts = memory_parts(model, parameters, clips, frames, "cuda-mixed")
    if devices > 1:
        parts["averaged_gradients"] = 4 * parameters  # in DDP's buckets
        on_gpu += parts["averaged_gradients"]
    if batches["accumulate_grad_batches"] > 1:
        on_gpu += parts["gradients"]  # those of the earlier batches, while the next one's activations are held
    return {
        "stage": type(stage).__name__,
        "parameters": parameters,
        "conditions": [stream.name for stream in layout.conditions],
        "target": layout.target.name,
        "pattern": layout.pattern,
        "conditioning": layout.conditioning,
        "streams": {
            stream.name: {"rate_hz": stream.rate_hz, "codebooks": stream.codebooks, "vocabulary": stream.vocabulary}
            for stream in (*layout.conditions, layout.target)
        },
        "clip_s": seconds,
        "sequence_steps": layout.plan(frames).steps,
        **batches,
        "tokens_per_step": batches["global_batch_size"] * frames * layout.target.codebooks,
        "flops_per_step": 3 * model.forward_flops(batches["global_batch_size"], frames),
        "sent_mib_per_step": round(2 * (devices - 1) / devices * 4 * parameters / 2**20, 1),
        "memory_gib": {
            "gpu": round(on_gpu * HELD_PER_BYTE_IN_USE["gpu"] / GIB, 2),
            "cpu": round(PROCESS_GIB + on_cpu * HELD_PER_BYTE_IN_USE["cpu"] / GIB, 2),
        },
        "gpu_memory_parts_gib": {part: round(size / GIB, 2) for part, size in parts.items()},
        "hours": predicted_hours(model, batches, frames, config.trainer.max_steps, name) if mixed else None,
    }


def main(argv: Sequence[str]) -> int:
    """Print the description."""
    epilog = "All other arguments are those of fit: --config FILE, --data.global_batch_size 4, ..."
    parser = Parser("describe", __doc__, epilog=epilog)
    parser.add_argument("--clip_s", type=float, help="length of a clip in seconds; default: data.crop_s, else 10")
    parser.add_argument("--gpu", help="predict hours for this GPU, such as H200; default: the one of this machine")
    options, rest = parser.parse_known_args(argv)
    if options.gpu is not None and chip_of(options.gpu) is None:
        parser.error(f"--gpu {options.gpu}: unknown; known are {', '.join(name.upper() for name in PEAK_TFLOPS)}")
    if options.clip_s is not None and not 0 < options.clip_s <= MOST_CLIP_S:
        parser.error(f"--clip_s must be above 0 and at most {MOST_CLIP_S:g} seconds, got {options.clip_s:g}")
    try:
        facts = describe(rest, options.clip_s, options.gpu)
    except ValueError as error:
        raise RequestError(str(error)) from error
    print(json.dumps(facts, indent=1))
    return 0
