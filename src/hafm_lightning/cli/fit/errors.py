"""Errors of LightningCLI's parser in a few lines: what is wrong, and in which file and line.

Keys and plain values are checked before the parser runs (:mod:`hafm_lightning.configuration.keys`). The parser reports
values known only after ``${...}``, classes of another kind, and missing arguments, in nested sentences below ninety
lines of usage; no exception carries the key, so it is read from the text.
"""

from __future__ import annotations

import re
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from hafm_lightning.configuration.origins import Origins
from hafm_lightning.errors import RequestError

KEY = re.compile(r"[Kk]ey ['\"](?P<key>[^'\"]+)['\"]")
"""How the parser names a key; an outer key comes before those inside it."""
GIVEN = "Given value: "
"""Begins the last line about a value that fits none of several types."""


class ParserStop(SystemExit):
    """The parser's message, in place of its usage and exit."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class StageParser(LightningArgumentParser):
    """A parser that raises its message in place of printing the usage, and expands no abbreviations.

    jsonargparse makes one of these for every class below ``class_path`` too.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise :class:`ParserStop`."""
        raise ParserStop(message) from ex


def explain(message: str, origins: Origins) -> RequestError:
    """A parser's message as a wrong request with file and line."""
    path = tuple(part for match in KEY.finditer(message) for part in match["key"].split("."))
    known = origins.ending_with(path)
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    if path and len(lines) > 1:
        last = lines[-1].replace(GIVEN, "it cannot be ")
        lines = [f"{'.'.join(known)!r}: {last}"]
    return RequestError("\n".join([*lines[:3], f"where: {origins.of(known)}"]))
