"""``export``: from checkpoints of training to one model folder, which loads without Lightning."""

from __future__ import annotations

from collections.abc import Sequence

from hafm_lightning import limits
from hafm_lightning.accompanist.model_folder import CardFacts, write_model_folder
from hafm_lightning.accompanist.recommended import Recommended, trained_noise
from hafm_lightning.accompanist.stage_network import networks_from_checkpoints, style_names, tokenizers_folder
from hafm_lightning.cli.band_arguments import (
    add_checkpoint_arguments,
    add_sampling_arguments,
    checkpoint_files,
    sampling_options,
)
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.untrusted import open_file, parse_json


def main(argv: Sequence[str]) -> int:
    """Run the command; 0 when the folder is written."""
    parser = Parser("export", "Write one model folder from the checkpoints of its stages, with tokenizers and a card.")
    parser.add_argument("--out", required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    parser.add_argument(
        "--include-tokenizer-weights", action="store_true", help="also copy the weights of HuBERT and EnCodec"
    )
    card = parser.add_argument_group("model card")
    card.add_argument("--name", default=CardFacts.name, help="title of the card")
    card.add_argument("--data", default=CardFacts.data, help="what the model was trained on")
    card.add_argument("--license", default=CardFacts.license, help="licence of the weights (SPDX), or other")
    card.add_argument("--metrics", metavar="JSON", help="a JSON file; the card shows the numbers at its top level")
    card.add_argument("--notes", metavar="FILE", help="a Markdown file for the end of the card")
    add_sampling_arguments(parser, absent="default: {}, the paper's")
    add_checkpoint_arguments(parser)
    arguments = parser.parse_args(argv)
    sampling = sampling_options(arguments, SamplingOptions())
    if arguments.semantic is None or arguments.coarse is None:
        raise RequestError("export needs --semantic, --coarse and --fine checkpoints")
    facts = CardFacts(
        name=arguments.name,
        data=arguments.data,
        license=arguments.license,
        metrics=read_metrics(arguments.metrics) if arguments.metrics else {},
        notes=read_text("--notes", arguments.notes).strip() if arguments.notes else "",
    )
    files = checkpoint_files(arguments)
    networks = networks_from_checkpoints(files["semantic"], files["coarse"], files["fine"], arguments.stages)
    folder = write_model_folder(
        arguments.out,
        networks,
        load_tokenizers(tokenizers_folder(networks, arguments.tokenizers)),
        styles=style_names(networks),
        card=facts,
        recommended=Recommended(sampling, trained_noise(networks)),
        include_tokenizer_weights=arguments.include_tokenizer_weights,
        overwrite=arguments.overwrite,
    )
    size_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}: {len(networks)} stages, {size_mb:.0f} MB")
    return 0


def read_metrics(path: str) -> dict[str, float]:
    """The numbers of a JSON object, by name; RequestError when there are none."""
    content = parse_json(
        read_text("--metrics", path), f"--metrics {path}: cannot be read, it", advice="correct the file"
    )
    entries = content.items() if isinstance(content, dict) else ()
    numbers = {name: float(value) for name, value in entries if type(value) in (int, float)}
    if not numbers:
        raise RequestError(f"--metrics {path}: holds no numbers at its top level")
    return numbers


def read_text(option: str, path: str) -> str:
    """The text of a file; RequestError when it is missing or no text."""
    try:
        with open_file(
            path, what="the text", advice=f"correct {option}", most_bytes=limits.current().json_bytes
        ) as file:
            return file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{option} {path}: cannot be read ({error})") from error
