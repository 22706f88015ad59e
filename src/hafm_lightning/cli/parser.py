"""The argument parser of the commands without a configuration file: mistakes are wrong requests of a few lines."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hafm_lightning.errors import RequestError

PROGRAM = "python -m hafm_lightning"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises RequestError where argparse prints its usage, and suggests the nearest option.

    Args:
        hint: A line of advice after an unknown option.
        settings: As for ``argparse.ArgumentParser``. Options are not abbreviated, so that a new one never changes what
            an old command line means.
    """

    def __init__(self, *, hint: str = "", **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})
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
                raise self._unknown(name)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise RequestError instead of printing the usage."""
        raise RequestError(f"{message}\n{self._more()}")

    def _unknown(self, name: str) -> RequestError:
        near = difflib.get_close_matches(name, self._option_string_actions, n=2, cutoff=0.7)
        guess = f"did you mean {' or '.join(map(repr, near))}?" if near else self._hint
        return RequestError("\n".join(line for line in (f"unknown argument {name!r}", guess, self._more()) if line))

    def _more(self) -> str:
        return f"{self.prog} --help explains the options"


def check_writable(out: Path) -> None:
    """Refuse a folder that cannot be created or written, before anything is computed; creates nothing."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in (out, *out.absolute().parents) if folder.exists())):
            pass
    except OSError as error:
        raise RequestError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
