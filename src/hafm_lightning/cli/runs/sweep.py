"""Write a W&B sweep over settings of a configuration.

Each option names a key of the configuration as in `fit`, with the values to try:

  --model.pattern delay,parallel              these values
  --model.optimizer.learning_rate 1e-4..1e-2  any value between the two (on a logarithmic scale from a factor of 10 on)
  --model.backbone.layers 2..6                any whole number from 2 to 6
  --trainer.max_steps 500                     this value in every run

Keys and values are checked as `fit` checks them. `wandb sweep FILE` creates the sweep, and each `wandb agent` trains
one combination after the other; every run has its own run folder. examples/optuna_sweep.py searches without W&B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from hafm_lightning.cli.parser import Parser, check_writable
from hafm_lightning.cli.runs.records import SCORES
from hafm_lightning.configuration.origins import Option, options_of
from hafm_lightning.configuration.suggestions import guess
from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic

RANGE = ".."
LOGARITHMIC_FROM = 10.0
"""Ratio of a range's ends from which on its logarithm is drawn evenly."""
SECTIONS = ("model", "data", "trainer", "checkpoints", "dashboard", "seed_everything")
"""First parts of the keys that can be searched."""
LOGGER = "--trainer.logger=hafm_lightning.callbacks.WandbDashboard"


def main(argv: Sequence[str]) -> int:
    """Check the keys, and write the sweep."""
    parser = Parser("sweep", str(__doc__))
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration of every run")
    parser.add_argument("--out", type=Path, default=Path("sweep.yaml"), metavar="FILE", help="default: sweep.yaml")
    parser.add_argument("--method", choices=("grid", "random"), help="default: grid, or random where there is a range")
    parser.add_argument("--metric", choices=tuple(SCORES), default="val/loss", help="the score (default: val/loss)")
    parser.add_argument("--name", default="", help="name of the sweep (default: that of the configuration)")
    options, rest = parser.parse_known_args(argv)
    keys = options_of(rest)
    for option in keys:
        if option.path[0] not in SECTIONS:
            near = guess(
                option.name.partition(".")[0], [*parser._option_string_actions, *(f"--{name}" for name in SECTIONS)]
            )
            raise RequestError(f"unknown option {option.name!r}\n{near}")
    if options.config is None:
        raise RequestError("no configuration\nname one with --config, such as --config experiments/coarse.yaml")
    check_writable(options.out.parent)
    parameters = {".".join(option.path): parameter(option) for option in keys}
    if not any("value" not in one for one in parameters.values()):
        raise RequestError(
            "nothing to search: name at least one key with several values\n"
            "such as --model.pattern delay,parallel or --model.optimizer.learning_rate 1e-4..1e-2"
        )
    ranges = [key for key, one in parameters.items() if "distribution" in one]
    if options.method == "grid" and ranges:
        raise RequestError(f"--method grid cannot try every value of a range: {', '.join(ranges)}\nname values, a,b,c")
    logger = [] if has_logger(options.config, parameters) else [LOGGER]
    sweep = {
        "name": options.name or options.config.stem,
        "method": options.method or ("random" if ranges else "grid"),
        "metric": {"name": options.metric, "goal": {"lower": "minimize", "higher": "maximize"}[SCORES[options.metric]]},
        "parameters": parameters,
        "program": "hafm_lightning",
        "command": [
            *("${env}", "${interpreter}", "-m", "hafm_lightning", "fit", "--config", str(options.config)),
            *logger,
            "${args}",
        ],
    }
    text = f"# wandb sweep {options.out}\n{yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True)}"
    try:
        write_atomic(options.out, text.encode())
    except OSError as error:
        raise RequestError(f"--out {options.out}: cannot be written ({error.strerror}); choose another") from error
    print(f"{options.out}\nnext: wandb sweep {options.out}, then the `wandb agent` that it names, on each machine")
    return 0


def parameter(option: Option) -> dict[str, Any]:
    """The values of a key, as W&B names them."""
    text = option.value
    if text is None or not text.strip():
        raise RequestError(f"{option.name} has no values\nwrite {option.name} a,b,c, or {option.name} low..high")
    low, dots, high = text.partition(RANGE)
    if dots:
        return between(option.name, value_of(low), value_of(high))
    value = value_of(text if text.startswith("[") or "," not in text else f"[{text}]")
    if not isinstance(value, list):
        return {"value": value}
    if len(value) < 2 or len({repr(one) for one in value}) < len(value):
        raise RequestError(f"{option.name} {text}: needs different values, at least two\nwrite a single one without []")
    return {"values": value}


def between(name: str, low: Any, high: Any) -> dict[str, Any]:
    """A range of numbers."""
    numbers = [value for value in (low, high) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)) or not low < high:
        raise RequestError(f"{name} {low}{RANGE}{high}: a range goes from a number to a larger one, such as 1e-4..1e-2")
    if isinstance(low, int) and isinstance(high, int):
        kind = "int_uniform"
    else:
        low, high = float(low), float(high)
        kind = "log_uniform_values" if low > 0 and high / low >= LOGARITHMIC_FROM else "uniform"
    return {"distribution": kind, "min": low, "max": high}


def value_of(text: str) -> Any:
    """A value by the loader of configurations, for which 1e-3 is a number."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]


def has_logger(config: Path, parameters: Mapping[str, Mapping[str, Any]]) -> bool:
    """Check every key and value as `fit` does; whether the configuration names a logger itself.

    Raises:
        RequestError: A key or a value is wrong, with its place.
    """
    from hafm_lightning.cli.fit.training import quiet_lightning, read_config

    tried = [
        f"--{key}={shown(value)}"
        for key, one in parameters.items()
        for value in (one.get("values") or [one[name] for name in ("value", "min", "max") if name in one])
    ]
    with quiet_lightning():
        read = read_config("fit", ["--config", str(config), *tried])
    return not isinstance(read.trainer.logger, bool | None)


def shown(value: Any) -> str:
    """A value as W&B's agent puts it on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
