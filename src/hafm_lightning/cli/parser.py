"""The argument parser of the commands without a configuration file: mistakes are wrong requests of a few lines."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hafm_lightning.configuration.suggestions import did_you_mean, nearest
from hafm_lightning.errors import RequestError

PROGRAM = "python -m hafm_lightning"


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

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; an unknown option is reported before a missing one, which may be the same one misspelt."""
        for argument in args or ():
            name = argument.partition("=")[0]
            if argument == "--":
                break
            if name.startswith("--") and name not in self._option_string_actions:
                near = nearest(name, list(self._option_string_actions))
                lines = (f"unknown argument {name!r}", did_you_mean(near) if near else self._hint)
                self.error("\n".join(filter(None, lines)))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise RequestError instead of printing the usage."""
        raise RequestError(f"{message}\n{self.prog} --help explains the options")


def check_writable(out: Path, option: str = "--out") -> None:
    """Refuse the folder of ``option`` if it cannot be created or written, before anything is computed; creates none."""
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in (out, *out.absolute().parents) if folder.exists())):
            pass
    except OSError as error:
        raise RequestError(f"{option} {out}: cannot be written ({error.strerror}); choose another folder") from error
