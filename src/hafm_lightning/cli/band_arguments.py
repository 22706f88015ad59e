"""Options that the commands about a whole model share: the model, its device, sampling and mix."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any, TypeVar

from hafm_lightning.accompanist import Accompanist, MixOptions
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions

T = TypeVar("T", SamplingOptions, MixOptions)
ROLES = ("semantic", "coarse", "fine")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name checkpoints and tokenizers."""
    group = parser.add_argument_group("checkpoints")
    for role in ROLES:
        group.add_argument(f"--{role}", metavar="CKPT", help=f"checkpoint of the {role} stage")
    group.add_argument("--tokenizers", metavar="DIR", help="shards' folder `tokenizers` (default: that of training)")
    group.add_argument("--stages", type=int, choices=(2, 3), default=3, help="2 omits the fine stage (default: 3)")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a model: a folder, a Hub id, or three checkpoints; and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="DIR_OR_HUB_ID", help="a model folder made by `export`, or its id on the Hub")
    group.add_argument("--revision", help="commit, tag or branch on the Hugging Face Hub")
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
    add = parser.add_argument_group("sampling").add_argument
    follows = "1 follows the vocal as in training, 0 ignores it, above 1 exaggerates it (default: 3)"
    add("--guidance", type=float, default=3.0, help=follows)
    add("--temperature", type=float, default=0.9, help="0 always takes the most likely token (default: 0.9)")
    add("--top-k", type=int, default=250, help="sample from this number of most likely tokens (default: 250)")
    add("--top-p", type=float, help="sample from the most likely tokens with this total probability")
    add("--style", help="name of a style, for models trained with styles")
    add("--overlap-s", type=float, help="overlap of the windows of a long vocal, in seconds (default: half a window)")


def add_mix_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the mix."""
    add = parser.add_argument_group("mix").add_argument
    add("--gain-db", type=float, default=0.0, help="gain of the accompaniment, in dB (default: 0)")
    add("--no-match-loudness", dest="match_loudness", action="store_false", help="keep the accompaniment's loudness")
    add("--peak-dbtp", type=float, default=-1.0, help="highest true peak, in dBTP (default: -1)")
    add("--rate-hz", type=int, help="sample rate of the files, in Hz (default: 24000)")
    add("--channels", type=int, choices=(1, 2), help="1 for a mono mix, 2 for stereo (default: as the vocal)")


def load_band(arguments: argparse.Namespace) -> Accompanist:
    """The model that the options name; RequestError if none or two are named. Its warning goes to stderr."""
    files = {role: getattr(arguments, role) for role in ROLES}
    runs_as: dict[str, Any] = {name: getattr(arguments, name) for name in ("stages", "device", "precision")}
    if arguments.model is not None:
        for role, path in files.items():
            if path is not None:
                raise RequestError(f"--model and --{role} name two models; give one of them")
        band = Accompanist.from_pretrained(arguments.model, revision=arguments.revision, **runs_as)
    elif None in (files["semantic"], files["coarse"]):
        raise RequestError("name a model: --model DIR_OR_HUB_ID, or --semantic, --coarse and --fine checkpoints")
    else:
        band = Accompanist.from_checkpoints(**files, tokenizers=arguments.tokenizers, **runs_as)
    if band.precision_note is not None:
        print(f"warning: {band.precision_note}", file=sys.stderr)
    return band


def options_of(kind: type[T], arguments: argparse.Namespace) -> T:
    """A dataclass of options from the arguments of the same names; RequestError names one that is out of range."""
    try:
        return kind(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(kind)})
    except ValueError as error:
        raise RequestError(str(error)) from error
