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
    from hafm_lightning.evaluation.tuning import Tuned

S = TypeVar("S", bound="EvaluateSettings")

DESCRIPTION = (
    "Measure a model beside its controls, and write a card as JSON, Markdown and HTML; print a summary. A stopped or "
    "repeated run reads the results that exist. Lists of names need no brackets: --systems NAME NAME. "
    "--details prints the whole card. --models.NAME MODEL compares another model with the first, clip by clip. "
    "--tune-sampling tries guidance, temperature and top-k on validation songs instead (the keys of `tuning`)."
)
NAME_LISTS = ("--systems", "--metrics", "--tuning.guidance", "--tuning.temperature", "--tuning.top_k")
DETAILS, TUNE = ("--details",), ("--tune-sampling", "--tune_sampling")
OLDER_SYNTAX = "--set"
"""Earlier versions wrote ``--set key=value``, which is still accepted."""


def main(argv: Sequence[str]) -> int:
    """Run the command and print a summary, or with ``--details`` all of the card, and where its files are."""
    from hafm_lightning.evaluation.settings import EvaluateSettings

    details, tune = (bool(set(flag) & set(argv)) for flag in (DETAILS, TUNE))
    settings = parse_settings(EvaluateSettings, with_lists(without_switches(argv)), f"{PROGRAM} evaluate", DESCRIPTION)
    settings = with_best_checkpoints(settings)
    if not tune and not settings.systems and not settings.models and not {"tokens", "probes"} & set(settings.metrics):
        raise RequestError("nothing to do: name at least one system, or the metrics `tokens` or `probes`")
    from hafm_lightning.cli.evaluate.summary import summary
    from hafm_lightning.evaluation.card.card import JSON_FILE, MARKDOWN_FILE, PAGE_FILE, markdown

    if tune:
        from hafm_lightning.evaluation.tuning import tune_sampling

        tuned = tune_sampling(settings)
        card, folder, last = tuned.card, tuned.folder, advice(tuned)
    else:
        from hafm_lightning.evaluation.evaluate import evaluate

        card, folder, last = evaluate(settings), Path(settings.output), []
    print(markdown(card) if details else summary(card))
    print("\n".join(["", *last, *(str(folder / name) for name in (JSON_FILE, MARKDOWN_FILE, PAGE_FILE))]))
    return 0


def advice(tuned: Tuned) -> list[str]:
    """What a search found, and how to use it."""
    from hafm_lightning.evaluation.tuning import words_of

    best = tuned.best
    found = f"best: {words_of(best)} ({tuned.column.label} {tuned.score:.3f}"
    if tuned.gain is None:
        return [f"{found}), which is the present sampling: nothing to change"]
    found += f"; {tuned.gain.mean:+.3f} [{tuned.gain.low:+.3f}, {tuned.gain.high:+.3f}] against the present one)"
    if tuned.recommended is None:
        return [found, "the interval contains 0: no reason to change the present sampling"]
    values = {"guidance": f"{best.guidance:g}", "temperature": f"{best.temperature:g}"}
    values |= {} if best.top_k is None else {"top-k": str(best.top_k)}
    options = " ".join(f"--{name} {value}" for name, value in values.items())
    return [found, f"keep it in a model folder: {PROGRAM} export ... {options}"]


def with_best_checkpoints(settings: S) -> S:
    """The settings with the best checkpoint of each run folder in place of the folder."""
    roles = {role: Path(getattr(settings, role)) for role in ("semantic", "coarse", "fine") if getattr(settings, role)}
    best: dict[str, Any] = {role: str(best_checkpoint(path)) for role, path in roles.items() if path.is_dir()}
    return dataclasses.replace(settings, **best)


def without_switches(argv: Sequence[str]) -> list[str]:
    """The settings among the arguments: without the switches that this command alone has."""
    return [argument for argument in argv if argument not in (*DETAILS, *TUNE)]


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
