"""The commands, each in a module of its own, which is imported when the command is called.

A command is a function ``(argv) -> int``. Other commands call these functions, which raise;
:mod:`hafm_lightning.cli.outcomes` turns what is raised into exit codes and a few lines.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hafm_lightning import __version__
from hafm_lightning.cli.outcomes import (
    DONE,
    ERROR_LINES,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    WRONG_REQUEST,
    exit_code,
    open_standard_streams,
    signals_as_exceptions,
    warnings_of_sound,
)
from hafm_lightning.cli.parser import PROGRAM
from hafm_lightning.configuration.suggestions import did_you_mean, nearest
from hafm_lightning.errors import RequestError
from hafm_lightning.processes.launchers import drop_left_over

__all__ = [
    "COMMANDS",
    "DONE",
    "ERROR_LINES",
    "FAILED",
    "INTERRUPTED",
    "OTHER_WORDS",
    "TERMINATED",
    "WRONG_REQUEST",
    "available",
    "find",
    "main",
    "meant",
    "run",
    "usage",
]

DEBUG_FLAG = "--debug"
"""Every command takes it: a traceback before the lines of an error."""
DEBUG_VARIABLE = "HAFM_DEBUG"
"""Environment variable with the same effect, also on processes that a command starts."""
SAVING_COMMANDS = ("fit", "validate", "test", "predict")
"""Commands that handle signals themselves, since training saves a checkpoint first."""

COMMANDS = {
    "fit": ("fit.command:fit", "train a stage, for example --config experiments/coarse.yaml"),
    "validate": ("fit.command:validate", "score a checkpoint on the validation clips"),
    "test": ("fit.command:test", "score a checkpoint on the test clips"),
    "predict": ("fit.command:predict", "write the loss of every test clip"),
    "describe": ("fit.describe:main", "print parameters, steps, FLOPs and memory of a configuration as JSON"),
    "configs": ("fit.configs:main", "list the configurations that come with the package, or copy them"),
    "curves": ("runs.curves:main", "draw loss and accuracy of runs as PNG and SVG"),
    "compare": ("runs.compare:main", "compare runs: one table, settings that differ, curves in one picture"),
    "sweep": ("runs.sweep:main", "write a W&B sweep over settings of a configuration"),
    "prepare": ("prepare:main", "turn songs into shards of tokens; a stopped run continues"),
    "generate": ("generate:main", "make the accompaniment of a vocal, and the mix"),
    "evaluate": ("evaluate:main", "measure one or several models and write an evaluation card"),
    "listen": ("listen:main", "blind listening tests: build, serve, report"),
    "judge": ("judge:main", "judge listening tests automatically"),
    "export": ("export:main", "write one model folder from three checkpoints"),
    "push": ("push:main", "upload a model folder to the Hugging Face Hub"),
    "app": ("app.command:main", "serve a web page that makes the accompaniment of an uploaded vocal"),
    "demo": ("demo.command:main", "prepare, train, generate and evaluate on synthesised songs"),
    "doctor": ("doctor:main", "check this machine and print a fix for everything missing"),
    "completion": ("completion:main", "print a script that completes commands and options in your shell"),
}
"""Name -> module and function in this package, and a line of help."""
OTHER_WORDS = {
    "fit": ("train", "training", "finetune", "fine-tune", "learn", "resume", "run"),
    "validate": ("val", "valid", "validation"),
    "predict": ("inference-loss", "losses"),
    "describe": ("info", "summary", "size", "flops", "params"),
    "curves": ("plot", "tensorboard", "loss"),
    "compare": ("diff", "table", "leaderboard"),
    "sweep": ("search", "tune", "hyperopt", "optuna", "grid"),
    "prepare": ("preprocess", "tokenize", "tokenise", "data", "dataset", "separate"),
    "generate": ("infer", "inference", "sample", "accompany", "sing", "play"),
    "evaluate": ("eval", "score", "benchmark", "metrics", "fad", "card"),
    "listen": ("study", "mushra", "survey"),
    "export": ("save", "convert", "package"),
    "push": ("upload", "publish", "hub"),
    "app": ("serve", "web", "webui", "ui", "gui", "gradio", "server"),
    "demo": ("quickstart", "example", "start"),
    "doctor": ("check", "env", "diagnose"),
    "completion": ("complete", "autocomplete", "completions"),
}
"""Command -> what other programs call it."""


def meant(word: str, commands: Sequence[str]) -> list[str]:
    """The commands that a wrong one may mean: by what other programs call it, else by its letters."""
    others = [name for name, words in OTHER_WORDS.items() if word.lower() in words and name in commands]
    return others or nearest(word, commands)


def available() -> dict[str, tuple[str, str]]:
    """The commands whose module is installed."""
    modules = {name: target.partition(":")[0] for name, (target, _) in COMMANDS.items()}
    return {name: COMMANDS[name] for name in COMMANDS if importlib.util.find_spec(f"{__name__}.{modules[name]}")}


def usage() -> str:
    """The list of commands."""
    lines = [f"hafm_lightning {__version__}: give a singing voice a band", ""]
    lines += [f"usage: {PROGRAM} COMMAND ... [{DEBUG_FLAG}] [--version]", ""]
    lines += [f"  {name:<12}{text}" for name, (_, text) in available().items()]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help explains a command."])


def find(name: str) -> Callable[[Sequence[str]], int]:
    """The function behind a command; RequestError, with the nearest names, when there is none."""
    commands = available()
    if name not in commands:
        near = meant(name, list(commands))
        question = f"; {did_you_mean(near)}" if near else ""
        raise RequestError(f"unknown command {name!r}{question}\ncommands: {', '.join(commands)}")
    function: Callable[[Sequence[str]], int] = pkgutil.resolve_name(f"{__name__}.{commands[name][0]}")
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    open_standard_streams()
    drop_left_over(os.environ)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG_FLAG in arguments or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != DEBUG_FLAG]
    before = os.environ.get(DEBUG_VARIABLE)
    os.environ[DEBUG_VARIABLE] = "1" if debug else "0"
    with warnings_of_sound(), signals_as_exceptions(arguments[:1] not in [[name] for name in SAVING_COMMANDS]):
        try:
            return exit_code(lambda: run(arguments), debug)
        finally:
            if before is None:
                os.environ.pop(DEBUG_VARIABLE, None)
            else:
                os.environ[DEBUG_VARIABLE] = before


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; raises what the command raises."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return DONE if arguments else WRONG_REQUEST
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return DONE
    try:
        Path.cwd()  # before the command is imported: libraries that PyTorch loads end the process there
    except OSError as error:
        raise RequestError(
            "the working directory no longer exists; change to another folder, such as with `cd ~`"
        ) from error
    return find(arguments[0])(arguments[1:])
