"""The argument parser of the commands without a configuration file: mistakes are wrong requests of a few lines."""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

from hafm_lightning.configuration.suggestions import did_you_mean, nearest
from hafm_lightning.errors import RequestError

SCRIPT = "hafm"
"""The console script of setup.cfg."""
PROGRAM = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m hafm_lightning"
"""What the user typed before the command, for help and for commands to type next."""
NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan).*", re.IGNORECASE)
"""A value that is a number, not an option."""
LARGEST_WHOLE = (1 << 63) - 1
"""Larger whole numbers do not fit the libraries behind the options."""


_only_made: ContextVar[bool] = ContextVar("only_made", default=False)


class ParserMade(Exception):
    """Carries a parser out of the command that has made it; see :func:`only_parsers`."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


@contextmanager
def only_parsers() -> Iterator[None]:
    """Within the block a command raises :class:`ParserMade` where it would parse its arguments."""
    token = _only_made.set(True)
    try:
        yield
    finally:
        _only_made.reset(token)


def hand_over(parser: argparse.ArgumentParser) -> None:
    """Raise :class:`ParserMade` within :func:`only_parsers`; else do nothing."""
    if _only_made.get():
        raise ParserMade(parser)


class Parser(argparse.ArgumentParser):
    """A parser that raises RequestError where argparse prints its usage, and suggests the nearest option.

    Options are not abbreviated, so that a new one never changes what an old command line means.

    Args:
        command: Name of the command.
        description: What it does; with its line breaks.
        epilog: Text below the options.
        hint: A line of advice after an unknown option.
    """

    def __init__(self, command: str, description: str, *, epilog: str = "", hint: str = "") -> None:
        layout = argparse.RawDescriptionHelpFormatter if "\n" in description else argparse.HelpFormatter
        super().__init__(
            prog=f"{PROGRAM} {command}",
            description=description,
            epilog=epilog,
            formatter_class=layout,
            allow_abbrev=False,
        )
        self._hint = hint
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; an unknown option is reported before a missing one, which may be the same one misspelt.

        ``--top_k`` is ``--top-k``: keys of configurations have underscores, and both kinds stand side by side.
        """
        hand_over(self)
        args = self._as_declared(sys.argv[1:] if args is None else args)
        waiting = ""  # an option before, whose value comes next
        for argument in args:
            name = argument.partition("=")[0]
            if argument == "--":
                break
            known = name in self._option_string_actions
            if waiting and argument.startswith("-") and not known and not NEGATIVE.fullmatch(argument) and argument[1:]:
                hint = f"write {waiting}={argument}, or ./{argument} for a file"
                self.error(f"{waiting} has no value: a value that begins with '-' looks like an option\n{hint}")
            if name.startswith("--") and not known:
                near = nearest(name, list(self._option_string_actions))
                lines = (f"unknown argument {name!r}", did_you_mean(near) if near else self._hint)
                self.error("\n".join(filter(None, lines)))
            takes_value = known and self._option_string_actions[name].nargs is None and name == argument
            waiting = name if takes_value else ""
        return super().parse_args(args, namespace)

    def _as_declared(self, args: Sequence[str]) -> list[str]:
        """The arguments with every option's dashes and underscores as the parser has them, up to ``--``."""
        spellings = {name.replace("_", "-"): name for name in self._option_string_actions if name.startswith("--")}
        end = list(args).index("--") if "--" in args else len(args)
        declared = []
        for argument in args[:end]:
            name, equals, value = argument.partition("=")
            known = name in self._option_string_actions
            right = name if known or not name.startswith("--") else spellings.get(name.replace("_", "-"), name)
            declared.append(f"{right}{equals}{value}")
        return [*declared, *args[end:]]

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; NaN, infinity and numbers beyond 64 bits are refused for every option."""
        hand_over(self)
        declared = self._as_declared(sys.argv[1:] if args is None else args)
        found, rest = super().parse_known_args(declared, namespace)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            for value in given if isinstance(given, list | tuple) else [given]:
                wrong = None
                if isinstance(value, float) and not math.isfinite(value):
                    wrong = f"must be a finite number, got {value}"
                elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
                    wrong = "is a number beyond 64 bits"
                if wrong:
                    self.error(f"argument {'/'.join(action.option_strings) or action.dest}: {wrong}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Raise RequestError instead of printing the usage."""
        raise RequestError(f"{message}\n{self.prog} --help explains the options")


def whole(low: int, high: int = LARGEST_WHOLE) -> Callable[[str], int]:
    """The ``type`` of an option: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        limits = f"from {low} to {high}" if high < LARGEST_WHOLE else f"of {low} or more"
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text!r:.40}") from error
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text:.40}")
        return value

    return parse


def check_writable(out: Path, option: str = "--out") -> None:
    """Refuse the folder of ``option`` if it cannot be created or written, before anything is computed; creates none."""
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in (out, *out.absolute().parents) if folder.exists())):
            pass
    except OSError as error:
        raise RequestError(f"{option} {out}: cannot be written ({error.strerror}); choose another folder") from error
