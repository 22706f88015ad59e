"""``listen``: blind listening tests. One module a sub-command, listed in :data:`SUBCOMMANDS`."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable, Sequence

from hafm_lightning.cli.parser import PROGRAM
from hafm_lightning.configuration.suggestions import did_you_mean, nearest
from hafm_lightning.errors import RequestError

__all__ = ["MODULES", "SUBCOMMANDS", "main"]

SUBCOMMANDS = {
    "build": "make a study: clips, systems, trials, key",
    "serve": "serve a study as a web page and collect votes",
    "report": "write tables, intervals and verdicts from votes",
    "import": "add votes from exported lines or from webMUSHRA",
    "remove": "delete the votes of listeners or judges",
    "power": "print how many trials and listeners a question needs",
}
"""Name -> a line of help. The module has the name, except ``importing``."""
MODULES = {name: "importing" if name == "import" else name for name in SUBCOMMANDS}


def main(argv: Sequence[str]) -> int:
    """Run a sub-command.

    Raises:
        RequestError: There is no such sub-command, or what it raises.
    """
    available = [name for name in SUBCOMMANDS if importlib.util.find_spec(f"{__name__}.{MODULES[name]}") is not None]
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} listen COMMAND ...\n")
        print("\n".join(f"  {name:<10}{SUBCOMMANDS[name]}" for name in available))
        print(f"\n{PROGRAM} listen COMMAND --help explains a command.")
        return 0
    if not argv or argv[0] not in available:
        wrong = f"unknown command listen {argv[0]!r}" if argv else "listen needs a command"
        near = nearest(argv[0], available) if argv else []
        question = f"; {did_you_mean(near)}" if near else ""
        raise RequestError(f"{wrong}{question}\ncommands: {', '.join(available)}")
    function: Callable[[Sequence[str]], int] = pkgutil.resolve_name(f"{__name__}.{MODULES[argv[0]]}:main")
    return function(argv[1:])
