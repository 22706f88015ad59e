"""``evaluate``: the evaluation card of a model; a stopped run continues."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hafm_lightning.cli.fit.runs import best_checkpoint
from hafm_lightning.cli.parser import PROGRAM
from hafm_lightning.configuration.settings import parse_settings
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    from hafm_lightning.evaluation.settings import EvaluateSettings

S = TypeVar("S", bound="EvaluateSettings")

DESCRIPTION = (
    "Measure a model beside its controls, and write a card as JSON, Markdown and HTML. A stopped or repeated run reads "
    "the results that exist. Lists of names need no brackets: --systems NAME NAME."
)
NAME_LISTS = ("--systems", "--metrics")
OLDER_SYNTAX = "--set"
"""Earlier versions wrote ``--set key=value``, which is still accepted."""


def main(argv: Sequence[str]) -> int:
    """Run the command and print where the card is."""
    from hafm_lightning.evaluation.settings import EvaluateSettings

    settings = parse_settings(EvaluateSettings, with_lists(argv), f"{PROGRAM} evaluate", DESCRIPTION)
    settings = with_best_checkpoints(settings)
    if not settings.systems and not {"tokens", "probes"} & set(settings.metrics):
        raise RequestError("nothing to do: name at least one system, or the metrics `tokens` or `probes`")
    from hafm_lightning.evaluation.card.card import JSON_FILE, MARKDOWN_FILE, PAGE_FILE, markdown
    from hafm_lightning.evaluation.evaluate import evaluate

    print(markdown(evaluate(settings)))
    for name in (JSON_FILE, MARKDOWN_FILE, PAGE_FILE):
        print(Path(settings.output) / name)
    return 0


def with_best_checkpoints(settings: S) -> S:
    """The settings with the best checkpoint of each run folder in place of the folder."""
    roles = {role: Path(getattr(settings, role)) for role in ("semantic", "coarse", "fine") if getattr(settings, role)}
    best: dict[str, Any] = {role: str(best_checkpoint(path)) for role, path in roles.items() if path.is_dir()}
    return dataclasses.replace(settings, **best)


def with_lists(argv: Sequence[str], lists: Collection[str] = NAME_LISTS) -> list[str]:
    """The arguments with ``--systems a b`` and ``--systems a,b`` as ``--systems=[a,b]``, and without ``--set``."""
    result: list[str] = []
    arguments = [argument for argument in argv if argument != OLDER_SYNTAX]
    while arguments:
        name, equals, text = arguments.pop(0).partition("=")
        if name not in lists:
            result.append(f"{name}{equals}{text}")
            continue
        names = [text] if equals else []
        while not equals and arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
            names.append(arguments.pop(0))
        joined = ",".join(names)
        result.append(f"{name}={joined if joined.startswith('[') else f'[{joined}]'}")
    return result
