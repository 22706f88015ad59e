"""Options that the commands about a whole model share: the model, its device, sampling and mix."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

from hafm_lightning.accompanist import Accompanist, MixOptions
from hafm_lightning.accompanist.recommended import FROM_MODEL, changed_sampling
from hafm_lightning.accompanist.song import NOISE_AUTO, VocalNoise, noise_sigma
from hafm_lightning.cli.fit.runs import best_checkpoint
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions

T = TypeVar("T", bound=MixOptions)
ROLES = ("semantic", "coarse", "fine")


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name checkpoints and tokenizers."""
    group = parser.add_argument_group("checkpoints")
    for role in ROLES:
        group.add_argument(
            f"--{role}", metavar="CKPT_OR_RUN", help=f"checkpoint of the {role} stage, or a run folder (its best one)"
        )
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


def add_sampling_arguments(parser: argparse.ArgumentParser, absent: str = "default: the model's, else {}") -> None:
    """Options of sampling; those that are left out are None. ``absent`` tells what holds then."""
    add = parser.add_argument_group("sampling").add_argument
    paper = SamplingOptions()

    def default(value: object) -> str:
        return f"({absent.format(value)})"

    follows = "1 follows the vocal as in training, 0 ignores it, above 1 exaggerates it"
    add("--guidance", type=float, help=f"{follows} {default(f'{paper.guidance:g}')}")
    add("--temperature", type=float, help=f"0 always takes the most likely token {default(paper.temperature)}")
    add("--top-k", type=int, help=f"sample from this number of most likely tokens {default(paper.top_k)}")
    add("--top-p", type=float, help=f"sample from the most likely tokens with this total probability {default('1')}")


def add_performance_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the way a vocal is read."""
    add = parser.add_argument_group("performance").add_argument
    add("--style", help="name of a style, for models trained with styles")
    add("--overlap-s", type=float, help="overlap of the windows of a long vocal, in seconds (default: half a window)")
    add(
        "--vocal-noise",
        type=vocal_noise,
        default=NOISE_AUTO,
        metavar="SIGMA",
        help="noise on the vocal before it is tokenized, full scale is 1; 0 for none, auto for that of training "
        "(default: auto)",
    )


def vocal_noise(text: str) -> VocalNoise:
    """The value of ``--vocal-noise``."""
    if text == NOISE_AUTO:
        return NOISE_AUTO
    try:
        return noise_sigma(float(text), 0.0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be auto, or a number from 0 to 1, got {text!r:.40}") from error


def sampling_options(arguments: argparse.Namespace, recommended: SamplingOptions) -> SamplingOptions:
    """The recommended sampling with the options that were given; RequestError for one that is out of range."""
    given = {name: getattr(arguments, name) for name in ("guidance", "temperature", "top_k", "top_p")}
    return changed_sampling(recommended, **{name: FROM_MODEL if v is None else v for name, v in given.items()})


def add_mix_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the mix."""
    add = parser.add_argument_group("mix").add_argument
    add("--gain-db", type=float, default=0.0, help="gain of the accompaniment, in dB (default: 0)")
    add("--no-match-loudness", dest="match_loudness", action="store_false", help="keep the accompaniment's loudness")
    add("--peak-dbtp", type=float, default=-1.0, help="highest true peak, in dBTP (default: -1)")
    add("--rate-hz", type=int, help="sample rate of the files, in Hz (default: that of the vocal)")
    add("--channels", type=int, choices=(1, 2), help="1 for a mono mix, 2 for stereo (default: as the vocal)")


def checkpoint_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Role -> checkpoint, with the best one of a run folder in its place; RequestError if that holds none."""
    named: dict[str, str | None] = {role: getattr(arguments, role) for role in ROLES}
    return {
        role: str(best_checkpoint(Path(name))) if name is not None and Path(name).is_dir() else name
        for role, name in named.items()
    }


def load_band(arguments: argparse.Namespace) -> Accompanist:
    """The model that the options name; RequestError if none or two are named. Its warning goes to stderr."""
    files = checkpoint_files(arguments)
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
