"""Print the size and cost of a configuration as one JSON object; no weights are created.

Its keys: stage, parameters, conditions, target, pattern, conditioning, streams, clip_s, sequence_steps, and
batch_size       clips of one process
tokens_per_step  target tokens of a batch
flops_per_step   forward and backward pass of a batch
memory_gib       estimated peak of training on one batch: on a GPU with mixed precision, and on the CPU (the
                 whole process, at the configured precision)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import torch

from hafm_lightning.cli.fit.training import StageCLI, quiet_lightning
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.token_model import TokenModelConfig
from hafm_lightning.stages import Stage
from hafm_lightning.tokens import CLIP_DURATION_S

Path = Literal["cpu", "cpu-mixed", "cuda-mixed"]
"""Implementations whose memory is known: float32 on the CPU, and autocast to half precision on CPU or CUDA."""

MOST_CLIP_S = 3600.0
GIB = 2**30
BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32."""
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
    # attention in half precision, which keeps the log-sum-exp of each query
    "cuda-mixed": (34, 8, 12, 8),
}
"""Bytes that autograd keeps of a layer at each step: for each of the width, of GEGLU's inner width, and of the heads;
and a rest."""
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


def training_bytes(config: TokenModelConfig, parameters: int, clips: int, frames: int, path: Path) -> int:
    """Peak bytes of a training step: at the start of the backward pass, or in the optimizer's step if that is more."""
    layout = config.layout
    codebooks = 1 if layout.pattern == "nonautoregressive" else layout.target.codebooks
    logits = clips * frames * codebooks * layout.target.vocabulary * LOGIT_BYTES[path]
    halves = 0 if path == "cpu" else 2 * parameters
    backward = 12 * parameters + halves + activation_bytes(config, clips, frames, path) + logits
    return max(backward, BYTES_PER_PARAMETER * parameters)


def describe(arguments: Sequence[str], clip_s: float | None = None) -> dict[str, Any]:
    """The facts about a configuration for clips of ``clip_s`` seconds; RequestError if it does not train a stage."""
    with quiet_lightning(), torch.device("meta"):
        cli = StageCLI("fit", arguments, build="model")
    stage, config = cli.model, cli.config["fit"]
    if not isinstance(stage, Stage):
        raise RequestError(f"{type(stage).__name__} is not a stage of this project\nname one in model.class_path")
    data = config.data.init_args if config.get("data") is not None else {}
    seconds = clip_s if clip_s is not None else data.get("crop_s") or CLIP_DURATION_S
    clips = int(data.get("batch_size") or 1)
    layout, model = stage.model.layout, stage.model.config
    frames = layout.target.frames(seconds)
    parameters = sum(parameter.numel() for parameter in stage.parameters())
    mixed = "16" in str(config.trainer.precision)
    on_cpu = training_bytes(model, parameters, clips, frames, "cpu-mixed" if mixed else "cpu")
    on_gpu = training_bytes(model, parameters, clips, frames, "cuda-mixed")
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
        "batch_size": clips,
        "tokens_per_step": clips * frames * layout.target.codebooks,
        "flops_per_step": 3 * model.forward_flops(clips, frames),
        "memory_gib": {
            "gpu": round(on_gpu * HELD_PER_BYTE_IN_USE["gpu"] / GIB, 2),
            "cpu": round(PROCESS_GIB + on_cpu * HELD_PER_BYTE_IN_USE["cpu"] / GIB, 2),
        },
    }


def main(argv: Sequence[str]) -> int:
    """Print the description."""
    epilog = "All other arguments are those of fit: --config FILE, --data.batch_size 4, ..."
    parser = Parser("describe", __doc__, epilog=epilog)
    parser.add_argument("--clip_s", type=float, help="length of a clip in seconds; default: data.crop_s, else 10")
    options, rest = parser.parse_known_args(argv)
    if options.clip_s is not None and not 0 < options.clip_s <= MOST_CLIP_S:
        parser.error(f"--clip_s must be above 0 and at most {MOST_CLIP_S:g} seconds, got {options.clip_s:g}")
    try:
        facts = describe(rest, options.clip_s)
    except ValueError as error:
        raise RequestError(str(error)) from error
    print(json.dumps(facts, indent=1))
    return 0
