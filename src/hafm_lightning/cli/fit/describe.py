"""``describe --config F``: stage, size and cost of a configuration as one JSON object; no weights are created.

Keys: ``stage``, ``parameters``, ``conditions``, ``target``, ``pattern``, ``conditioning``, ``streams``,
``clip_s``, ``sequence_steps``, ``batch_size`` (a process), ``tokens_per_step`` (target tokens of a batch),
``flops_per_step`` (forward and backward of a batch), and ``memory_gib``: the estimated peak of training on one batch,
on a GPU (with mixed precision) and on the CPU (the whole process, at the precision that a CPU would use).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

from hafm_lightning.cli.fit.training import StageCLI, quiet_lightning
from hafm_lightning.cli.parser import PROGRAM, Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.cost import GIB, training_bytes, training_flops
from hafm_lightning.stages import Stage
from hafm_lightning.tokens import CLIP_DURATION_S

PROCESS_GIB = 0.5
"""Memory of Python, PyTorch and Lightning on the CPU without a model."""
HELD_PER_BYTE_IN_USE = {"cpu": 1.35, "gpu": 1.1}
"""What the allocators hold for each byte in use: the C library keeps much of what is freed between two steps. The
CPU's share is measured (steps of the semantic and the coarse stage, 1.24 to 1.5), the GPU's is not."""


def describe(arguments: Sequence[str], clip_s: float | None = None) -> dict[str, Any]:
    """The facts about a configuration.

    Args:
        arguments: As for ``fit``.
        clip_s: Length of a clip in seconds; by default the configuration's crop, else 10.

    Raises:
        RequestError: The configuration is wrong, or does not train a stage of this project.
    """
    with quiet_lightning(), torch.device("meta"):
        cli = StageCLI("fit", arguments, model_only=True)
    stage, config = cli.model, cli.config["fit"]
    if not isinstance(stage, Stage):
        raise RequestError(
            f"{type(stage).__name__} is not a stage of this project\nmodel.class_path names one of those"
        )
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
        "flops_per_step": training_flops(model, clips, frames),
        "memory_gib": {
            "gpu": round(on_gpu * HELD_PER_BYTE_IN_USE["gpu"] / GIB, 2),
            "cpu": round(PROCESS_GIB + on_cpu * HELD_PER_BYTE_IN_USE["cpu"] / GIB, 2),
        },
    }


def main(argv: Sequence[str]) -> int:
    """Print the description."""
    parser = Parser(
        prog=f"{PROGRAM} describe",
        description=__doc__,
        epilog="All other arguments are those of fit: --config FILE, --data.batch_size 4, ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clip_s", type=float, help="length of a clip in seconds; default: data.crop_s, else 10")
    options, rest = parser.parse_known_args(argv)
    try:
        facts = describe(rest, options.clip_s)
    except ValueError as error:
        raise RequestError(str(error)) from error
    print(json.dumps(facts, indent=1))
    return 0
