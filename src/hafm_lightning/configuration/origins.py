"""A command line in pieces, and where each key of a configuration was set: file and line, or option."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hafm_lightning.configuration.yaml_keys import KeyPath, Source, key_lines, read_tree
from hafm_lightning.errors import RequestError

SPEC = ("class_path", "init_args", "dict_kwargs")
"""Keys that name a class and its arguments; messages leave them out of a key's path."""
CONFIG_OPTIONS = ("--config", "-c")


@dataclass(frozen=True)
class Option:
    """One option of a command line: its name with dashes, and its text (None where none follows)."""

    name: str
    value: str | None

    @property
    def source(self) -> Source:
        """The option as the place of a mistake."""
        return Source(f"command line: {self.name.removesuffix('+')}", is_file=False)

    @property
    def path(self) -> KeyPath:
        """The parts of the dotted key."""
        return tuple(self.name.removeprefix("--").removesuffix("+").split("."))

    @property
    def file(self) -> Path | None:
        """The configuration file that it names, if any."""
        return Path(self.value) if self.name in CONFIG_OPTIONS and self.value is not None else None


def options_of(arguments: Sequence[str]) -> list[Option]:
    """The options of a command line, from left to right, up to ``--``; ``key=value`` is ``--key value``.

    Raises:
        RequestError: An argument belongs to no option.
    """
    options = []
    waiting = list(arguments)
    while waiting and waiting[0] != "--":
        name, equals, text = waiting.pop(0).partition("=")
        value = text if equals else None
        if not name.startswith("-"):
            if not name or not equals:
                raise RequestError(
                    f"unexpected argument {name + equals + text!r}\nwhere: command line\n"
                    "settings are given as --key value or key=value, for example --seed 1"
                )
            name = f"--{name}"
        elif value is None and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        options.append(Option(name, value))
    return options


class Origins:
    """Where the keys of a configuration were set.

    Args:
        options: The command line.

    Raises:
        RequestError: A configuration file is missing or broken.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self._places: list[tuple[KeyPath, str, bool]] = []
        self.files: list[Path] = []
        for option in options:
            if option.file is None:
                self._places.append((without_spec(option.path), option.source.name, True))
                continue
            self.files.append(option.file)
            source = Source(str(option.file))
            for path, line in key_lines(read_tree(option.file)):
                self._places.append((without_spec(path), source.place(line), False))

    def of(self, path: KeyPath) -> str:
        """Where a key was set last, else the section around it, else the files."""
        for known, where, is_option in reversed(self._places if path else []):
            shorter = min(len(known), len(path))
            if known == path or (is_option and known[:shorter] == path[:shorter]):
                return where
        for length in range(len(path) - 1, 0, -1):
            sections = [where for known, where, _ in self._places if known == path[:length]]
            if sections:
                return sections[-1]
        return ", ".join(map(str, self.files)) or "command line"

    def ending_with(self, path: KeyPath) -> KeyPath:
        """The whole path of a key of which the parser gives only the last parts."""
        wanted = without_spec(path)
        return next((known for known, *_ in self._places if known[-len(wanted) :] == wanted), wanted)


def without_spec(path: Iterable[str]) -> KeyPath:
    """A key's path as messages show it."""
    return tuple(part for part in path if part not in SPEC)
