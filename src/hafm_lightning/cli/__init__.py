"""The commands, each in a module of its own, which is imported when the command is called.

A command is a function ``(argv) -> int``. Other commands call these functions, which raise; this module turns what is
raised into exit codes:

* 0: done;
* 1: the work failed (the traceback is shown: it is not the request's fault);
* 2: the request was wrong (:class:`~hafm_lightning.errors.RequestError`): at most five lines that say what, where and
  what to do, and no traceback unless ``--debug`` is given;
* 129, 130, 143: stopped by SIGHUP, Ctrl-C or SIGTERM, after a checkpoint where training was under way.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence

from hafm_lightning import __version__
from hafm_lightning.configuration.suggestions import did_you_mean, nearest
from hafm_lightning.errors import RequestError
from hafm_lightning.processes.launchers import drop_left_over

DONE, FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
ERROR_LINES = 5
"""A wrong request is answered in at most this many lines."""
DEBUG_FLAG = "--debug"

COMMANDS = {
    "fit": ("fit.training:fit", "train a stage, for example --config experiments/coarse.yaml"),
    "validate": ("fit.training:validate", "score a checkpoint on the validation clips"),
    "test": ("fit.training:test", "score a checkpoint on the test clips"),
    "predict": ("fit.training:predict", "write the loss of every test clip"),
    "describe": ("fit.describe:main", "print parameters, steps, FLOPs and memory of a configuration as JSON"),
    "curves": ("fit.curves:main", "draw loss and accuracy of runs as PNG and SVG"),
    "prepare": ("prepare:main", "turn songs into shards of tokens; a stopped run continues"),
    "generate": ("generate:main", "make the accompaniment of a vocal, and the mix"),
    "evaluate": ("evaluate:main", "measure a model and write its evaluation card"),
    "listen": ("listen:main", "blind listening tests: build, serve, report"),
    "judge": ("judge:main", "judge listening tests automatically"),
    "export": ("export:main", "write one model folder from three checkpoints"),
    "push": ("push:main", "upload a model folder to the Hugging Face Hub"),
    "app": ("app:main", "serve a web page that makes the accompaniment of an uploaded vocal"),
    "demo": ("demo.command:main", "prepare, train, generate and evaluate on synthesised songs"),
    "doctor": ("doctor:main", "check this machine and print a fix for everything missing"),
}
"""Name -> module and function in this package, and a line of help."""


def available() -> dict[str, tuple[str, str]]:
    """The commands whose module is installed."""
    modules = {name: target.partition(":")[0] for name, (target, _) in COMMANDS.items()}
    return {name: COMMANDS[name] for name in COMMANDS if importlib.util.find_spec(f"{__name__}.{modules[name]}")}


def usage() -> str:
    """The list of commands."""
    lines = [f"hafm_lightning {__version__}: give a singing voice a band", ""]
    lines += [f"usage: python -m hafm_lightning COMMAND ... [{DEBUG_FLAG}]", ""]
    lines += [f"  {name:<10}{text}" for name, (_, text) in available().items()]
    return "\n".join([*lines, "", "python -m hafm_lightning COMMAND --help explains a command."])


def find(name: str) -> Callable[[Sequence[str]], int]:
    """The function behind a command; RequestError, with the nearest names, when there is none."""
    commands = available()
    if name not in commands:
        near = nearest(name, list(commands))
        question = f"; {did_you_mean(near)}" if near else ""
        raise RequestError(f"unknown command {name!r}{question}\ncommands: {', '.join(commands)}")
    function: Callable[[Sequence[str]], int] = pkgutil.resolve_name(f"{__name__}.{commands[name][0]}")
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    drop_left_over(os.environ)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG_FLAG in arguments
    arguments = [argument for argument in arguments if argument != DEBUG_FLAG]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return DONE if arguments else WRONG_REQUEST
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return DONE
    try:
        return find(arguments[0])(arguments[1:])
    except RequestError as error:
        if debug:
            traceback.print_exception(error)
        else:
            lines = [line.rstrip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
            if rank == "0":
                print("\n".join([f"error: {lines[0]}", *lines[1:ERROR_LINES]]), file=sys.stderr)
            else:  # the first of several processes says the rest, if there is one
                print(f"error (process {rank}): {lines[0]}", file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse's own exits; SIGTERM in the middle of Lightning's loops
        if type(stop).__name__ == "SIGTERMException":
            return stop.code if isinstance(stop.code, int) and stop.code else TERMINATED
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else FAILED
