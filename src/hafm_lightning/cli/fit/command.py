"""``fit``, ``validate``, ``test``, ``predict`` at the command line: a short help at once, the work by LightningCLI.

LightningCLI's own help has five hundred lines and needs half a minute, since it imports PyTorch and reads the
signatures of all classes. ``--help`` shows the keys that people use; ``--help-all`` (or ``--help=all``) shows it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from hafm_lightning.cli.parser import PROGRAM

SHORT_HELP = ("-h", "--help")
WHOLE_HELP = ("--help-all", "--help_all", "--help=all")
KEYS: Mapping[str, Mapping[str, str]] = {
    "the run": {
        "--config FILE": "YAML file, such as experiments/quickstart/coarse.yaml; may be repeated, the last one wins",
        "--ckpt_path FILE": "checkpoint to load; `auto` for {auto} of the newest run",
        "--trainer.default_root_dir DIR": "folder of the runs (default: logs/<name of the configuration>)",
        "--seed_everything N": "seed of weights and order of clips (default: 0)",
        "--trainer.fast_dev_run true": "one batch of everything, nothing is written: does the configuration work?",
    },
    "the data": {
        "--data.root DIR": "prepared shards",
        "--data.batch_size N": "clips in a step of one process",
        "--data.crop_s S": "seconds of each clip, cut at random; default: the whole clip",
    },
    "the model": {
        "--model.pattern NAME": "order of the codebooks: flattened (the paper), delay, parallel, nonautoregressive",
        "--model.conditioning NAME": "prefix (the paper) or aligned",
        "--model.backbone.layers N": "Transformer layers; also .width, .heads, .feedforward, .dropout",
        "--model.guidance_dropout P": "share of clips that are trained without their conditions (default: 0.1)",
    },
    "training": {
        "--model.optimizer.learning_rate R": "also .weight_decay, .warmup_steps, .schedule, .total_steps",
        "--trainer.max_steps N": "optimizer steps; keep model.optimizer.total_steps equal to it",
        "--trainer.max_time DD:HH:MM:SS": "longest duration",
        "--trainer.precision NAME": "32-true, bf16-mixed, 16-mixed (half precision is for GPUs)",
        "--trainer.devices N": "GPUs or processes; also .accelerator, .num_nodes, .strategy",
        "--trainer.accumulate_grad_batches N": "batches whose gradients make one step",
        "--trainer.gradient_clip_val X": "largest norm of a step's gradient",
        "--trainer.val_check_interval N": "batches between two validations",
    },
    "checkpoints": {
        "--checkpoints.every_steps N": "steps between two saves (default: 1000); also .every_minutes",
        "--checkpoints.keep N": "newest checkpoints that are kept beside best.ckpt (default: 2)",
        "--checkpoints.monitor METRIC": "metric of best.ckpt (default: val/loss)",
    },
}
"""Heading -> option with its value -> meaning, in the order of the help; each is checked against the parser."""
NOT_FOR_SCORING = ("training", "checkpoints")
"""Headings that only `fit` shows."""
WIDTH = 36


def short_help(command: str) -> str:
    """The keys of ``command`` that people use."""
    from hafm_lightning.cli import COMMANDS

    auto = "the newest checkpoint" if command == "fit" else "the best checkpoint"
    lines = [f"usage: {PROGRAM} {command} --config FILE [--KEY VALUE ...]", "", f"{COMMANDS[command][1]}.", ""]
    lines.append("Every key of the file is an option too: --KEY VALUE, --KEY=VALUE or KEY=VALUE; the last one wins.")
    for heading, keys in KEYS.items():
        if command == "fit" or heading not in NOT_FOR_SCORING:
            lines += ["", heading, *(f"  {key:<{WIDTH}} {text.format(auto=auto)}" for key, text in keys.items())]
    return "\n".join(
        [
            *lines,
            "",
            f"  {'--print_config':<{WIDTH}} the configuration that a run would have, then stop",
            f"  {'--help-all':<{WIDTH}} every key, with type and default (takes a while)",
            f"  {'--model.help CLASS':<{WIDTH}} the keys of one class; also --data.help",
        ]
    )


def main(command: str, arguments: Sequence[str]) -> int:
    """Show the short help, or run the command."""
    if set(SHORT_HELP) & set(arguments) and not set(WHOLE_HELP) & set(arguments):
        print(short_help(command))
        return 0
    from hafm_lightning.cli.fit.training import run

    if set(WHOLE_HELP) & set(arguments):
        arguments = [SHORT_HELP[-1]]
    return run(command, arguments)


fit, validate, test, predict = (partial(main, command) for command in ("fit", "validate", "test", "predict"))
