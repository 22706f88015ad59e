"""Options that the commands about a whole model share: the model, its device, sampling and mix."""

from __future__ import annotations

import argparse
import sys
from typing import Literal, cast

from hafm_lightning.accompanist import Accompanist, MixOptions
from hafm_lightning.accompanist.stage_network import Precision
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name checkpoints and tokenizers."""
    group = parser.add_argument_group("checkpoints")
    for role in ("semantic", "coarse", "fine"):
        group.add_argument(f"--{role}", metavar="CKPT", help=f"checkpoint of the {role} stage")
    group.add_argument(
        "--tokenizers", metavar="DIR", help="folder `tokenizers` of the shards (default: the one used in training)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a model: a folder, a Hub id, or three checkpoints; and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="DIR_OR_HUB_ID", help="a model folder made by `export`, or its id on the Hugging Face Hub"
    )
    group.add_argument("--revision", help="commit, tag or branch on the Hub")
    group.add_argument(
        "--stages", type=int, default=3, help="number of stages; 2 leaves the fine stage out (default: 3)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "int8"),
        default="auto",
        help="number format of weights and cache (default: auto)",
    )
    add_checkpoint_arguments(parser)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of sampling."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--guidance",
        type=float,
        default=3.0,
        help="1 uses the vocal as learned, 0 ignores it, above 1 exaggerates it (default: 3)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.9,
        help="sampling temperature; 0 always takes the most likely token (default: 0.9)",
    )
    group.add_argument(
        "--top-k", type=int, default=250, help="sample from this number of most likely tokens (default: 250)"
    )
    group.add_argument("--top-p", type=float, help="sample from the most likely tokens with this total probability")
    group.add_argument("--style", help="name of a style, for models trained with styles")
    group.add_argument("--overlap-s", type=float, help="overlap of the windows of a long vocal, in seconds")


def add_mix_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the mix."""
    group = parser.add_argument_group("mix")
    group.add_argument("--gain-db", type=float, default=0.0, help="gain of the accompaniment, in dB (default: 0)")
    group.add_argument(
        "--no-match-loudness", action="store_true", help="do not match the accompaniment's loudness to the vocal"
    )
    group.add_argument("--peak-dbtp", type=float, default=-1.0, help="highest true peak, in dB (default: -1)")
    group.add_argument("--rate-hz", type=int, help="sample rate of the files (default: 24000)")
    group.add_argument("--channels", type=int, choices=(1, 2), help="mono or stereo mix (default: as the vocal)")


def load_band(arguments: argparse.Namespace) -> Accompanist:
    """The model that the options name.

    Raises:
        RequestError: None is named, or two ways at once, or it cannot be loaded.
    """
    checkpoints = {role: getattr(arguments, role) for role in ("semantic", "coarse", "fine")}
    named = [f"--{role}" for role, path in checkpoints.items() if path is not None]
    if arguments.stages not in (2, 3):
        raise RequestError(f"--stages must be 2 or 3, got {arguments.stages}")
    stages = cast(Literal[2, 3], arguments.stages)
    precision = cast(Precision, arguments.precision)
    if arguments.model is not None:
        if named:
            raise RequestError(f"--model and {named[0]} name two models; give one of them")
        return with_note(
            Accompanist.from_pretrained(
                arguments.model,
                revision=arguments.revision,
                stages=stages,
                device=arguments.device,
                precision=precision,
            )
        )
    if checkpoints["semantic"] is None or checkpoints["coarse"] is None:
        raise RequestError("name a model: --model DIR_OR_HUB_ID, or --semantic, --coarse and --fine checkpoints")
    return with_note(
        Accompanist.from_checkpoints(
            semantic=checkpoints["semantic"],
            coarse=checkpoints["coarse"],
            fine=checkpoints["fine"],
            tokenizers=arguments.tokenizers,
            stages=stages,
            device=arguments.device,
            precision=precision,
        )
    )


def with_note(band: Accompanist) -> Accompanist:
    """The band, after a line to stderr if its precision was named and is not to be had in the fast way."""
    if band.precision_note is not None:
        print(f"warning: {band.precision_note}", file=sys.stderr)
    return band


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The sampling options; RequestError names the one that is out of range."""
    try:
        return SamplingOptions(arguments.guidance, arguments.temperature, arguments.top_k, arguments.top_p)
    except ValueError as error:
        raise RequestError(f"{error}") from error


def mix_options(arguments: argparse.Namespace) -> MixOptions:
    """The mixing options."""
    return MixOptions(
        gain_db=arguments.gain_db,
        match_loudness=not arguments.no_match_loudness,
        peak_dbtp=arguments.peak_dbtp,
        rate_hz=arguments.rate_hz,
        channels=arguments.channels,
    )
