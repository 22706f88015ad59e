"""``evaluate``: the evaluation card of a model, resumably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hafm_lightning.cli.parser import PROGRAM, Parser
from hafm_lightning.cli.runs import best_checkpoint
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    from hafm_lightning.evaluation.settings import EvaluateSettings


def main(argv: Sequence[str]) -> int:
    """Run the command and print where the card is.

    Raises:
        RequestError: The settings are wrong, or songs, model or tokenizers are missing.
    """
    parser = Parser(
        prog=f"{PROGRAM} evaluate",
        description="Measure a model and its controls and write a card: JSON, Markdown, HTML. "
        "Results of earlier runs are used again.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="settings: experiments/evaluate.yaml")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="only these groups of columns")
    parser.add_argument("--output", metavar="DIR", help="folder of the card and of all stored results")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="settings to change, for example sampling.guidance=1"
    )
    arguments = parser.parse_args(list(argv))
    overrides = list(arguments.set)
    if arguments.output is not None:
        overrides.append(f"output={arguments.output}")
    from hafm_lightning.evaluation.card.card import JSON_FILE, MARKDOWN_FILE, PAGE_FILE, markdown
    from hafm_lightning.evaluation.evaluate import evaluate

    changes = {}
    for key in ("systems", "metrics"):
        names = getattr(arguments, key)
        if names is not None:
            changes[key] = [name for text in names for name in text.split(",") if name]
    settings = read_settings(Path(arguments.config), overrides, changes)
    if not settings.systems and not {"tokens", "probes"} & set(settings.metrics):
        raise RequestError("nothing to do: name at least one system, or the metrics `tokens` or `probes`")
    card = evaluate(settings)
    print(markdown(card))
    for name in (JSON_FILE, MARKDOWN_FILE, PAGE_FILE):
        print(Path(settings.output) / name)
    return 0


def read_settings(config: Path, overrides: Sequence[str], changes: Mapping[str, Any]) -> EvaluateSettings:
    """Settings from a YAML file, ``key=value`` overrides and plain values; a folder of runs gives its best checkpoint.

    Raises:
        RequestError: The file or a value is wrong.
    """
    from hafm_lightning.evaluation.settings import EvaluateSettings
    from hafm_lightning.preparation.settings import build, read_yaml

    values = read_yaml(config, overrides) | dict(changes)
    for role in ("semantic", "coarse", "fine"):
        if values.get(role) and Path(str(values[role])).is_dir():
            values[role] = str(best_checkpoint(Path(str(values[role]))))
    return build(EvaluateSettings, values, "")
