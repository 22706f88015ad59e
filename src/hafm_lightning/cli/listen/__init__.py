"""``listen``: blind listening tests. One module a sub-command, listed in :data:`SUBCOMMANDS`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Sequence

from hafm_lightning.cli import Command
from hafm_lightning.cli.parser import PROGRAM
from hafm_lightning.errors import RequestError

SUBCOMMANDS = {
    "build": Command("listen.build", "make a study: clips, systems, trials, key"),
    "serve": Command("listen.serve", "serve a study as a web page and collect votes"),
    "report": Command("listen.report", "write tables, intervals and verdicts from votes"),
    "import": Command("listen.importing", "add votes from exported lines or from webMUSHRA"),
    "power": Command("listen.power", "say how many trials and listeners a question needs"),
}
"""Name -> sub-command. Those whose module is not installed are not offered."""


def main(argv: Sequence[str]) -> int:
    """Run a sub-command.

    Raises:
        RequestError: There is no such sub-command, or what it raises.
    """
    available = {
        name: command
        for name, command in SUBCOMMANDS.items()
        if importlib.util.find_spec(f"hafm_lightning.cli.{command.module}") is not None
    }
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} listen COMMAND ...\n")
        print("\n".join(f"  {name:<10}{command.help}" for name, command in available.items()))
        print(f"\n{PROGRAM} listen COMMAND --help explains a command.")
        return 0
    if not argv or argv[0] not in available:
        wrong = f"unknown command listen {argv[0]!r}" if argv else "listen needs a command"
        near = difflib.get_close_matches(argv[0], available, n=1, cutoff=0.5) if argv else []
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise RequestError(f"{wrong}{guess}\ncommands: {', '.join(available)}")
    command = available[argv[0]]
    module = importlib.import_module(f"hafm_lightning.cli.{command.module}")
    function: Callable[[Sequence[str]], int] = getattr(module, command.function)
    return function(argv[1:])
