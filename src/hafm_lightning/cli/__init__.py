"""The commands, each in a module of its own, found by name and imported when asked for.

A command is a function ``main(argv) -> int`` in ``cli/<name>.py``; :data:`COMMANDS` lists them. This module turns what
they raise into exit codes:

* 0: done;
* 1: the work failed (the traceback is shown: it is not the request's fault);
* 2: the request was wrong (:class:`~hafm_lightning.errors.RequestError`): at most five lines that say what, where and
  what to do, and no traceback unless ``--debug`` is given;
* 130: stopped by Ctrl-C;
* 143: stopped by SIGTERM, after a checkpoint where training was under way.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hafm_lightning import __version__
from hafm_lightning.errors import RequestError

DONE, FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes."""
ERROR_LINES = 5
"""A wrong request is answered in at most this many lines."""
DEBUG_FLAG = "--debug"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: Its module in this package.
        help: One line for the list of commands.
        function: Name of the function in the module, ``main(argv) -> int``.
    """

    module: str
    help: str
    function: str = "main"


COMMANDS = {
    "fit": Command("training", "train a stage: --config experiments/coarse.yaml", "fit"),
    "validate": Command("training", "score a checkpoint on the validation clips", "validate"),
    "test": Command("training", "score a checkpoint on the test clips", "test"),
    "predict": Command("training", "write the loss of every test clip", "predict"),
    "describe": Command("describe", "parameters, steps, FLOPs and memory of a configuration, as JSON"),
    "curves": Command("curves", "draw loss and accuracy of runs, as PNG and SVG"),
    "prepare": Command("prepare", "songs -> shards of tokens, resumable"),
    "generate": Command("generate", "a vocal -> its accompaniment and the mix"),
    "evaluate": Command("evaluate", "the evaluation card of a model"),
    "listen": Command("listen", "blind listening trials: build, serve, report"),
    "judge": Command("judge", "the automatic judge of listening trials"),
    "export": Command("export", "one self-describing model folder from three checkpoints"),
    "push": Command("push", "a model folder to the Hub"),
    "app": Command("app", "a page: drop a vocal, hear the accompaniment"),
    "demo": Command("demo.command", "the whole chain on synthesised songs, from nothing to audible music"),
    "doctor": Command("doctor", "what this machine has, and what mends each lack"),
}
"""Name -> command. Commands whose module is not installed are not offered."""


def available() -> dict[str, Command]:
    """The commands that this installation has."""
    return {name: c for name, c in COMMANDS.items() if importlib.util.find_spec(f"{__name__}.{c.module}") is not None}


def usage() -> str:
    """The list of commands."""
    lines = [f"hafm_lightning {__version__}: give a singing voice a band", ""]
    lines += [f"usage: python -m hafm_lightning COMMAND ... [{DEBUG_FLAG}]", ""]
    lines += [f"  {name:<10}{command.help}" for name, command in available().items()]
    return "\n".join([*lines, "", "python -m hafm_lightning COMMAND --help explains a command."])


def find(name: str) -> Callable[[Sequence[str]], int]:
    """The function behind a command; RequestError, with the nearest names, when there is none."""
    commands = available()
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=3, cutoff=0.5)
        raise RequestError(
            f"unknown command {name!r}"
            + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
            + f"\ncommands: {', '.join(commands)}"
        )
    command = commands[name]
    function: Callable[[Sequence[str]], int] = getattr(
        importlib.import_module(f"{__name__}.{command.module}"), command.function
    )
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
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
        return refuse(error, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse's own exits; SIGTERM in the middle of Lightning's loops
        if type(stop).__name__ == "SIGTERMException":
            return TERMINATED
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else FAILED


def refuse(error: Exception, debug: bool) -> int:
    """Show a wrong request in at most :data:`ERROR_LINES` lines (once, also with several processes)."""
    if debug:
        traceback.print_exception(error)
    elif os.environ.get("LOCAL_RANK", "0") == "0":
        lines = [line.rstrip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        print("\n".join([f"error: {lines[0]}", *lines[1:ERROR_LINES]]), file=sys.stderr)
    return WRONG_REQUEST
