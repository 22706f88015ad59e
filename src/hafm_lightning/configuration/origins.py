"""A command line in pieces, and where each key of a configuration was set: file and line, or option."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from hafm_lightning.configuration.yaml_keys import Source, key_lines, read_tree
from hafm_lightning.errors import RequestError

SPEC = ("class_path", "init_args", "dict_kwargs")
"""Keys that say which class is meant, and with what; they are left out of a key's path in messages."""
CONFIG_OPTIONS = ("--config", "-c")

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """One option of a command line.

    Attributes:
        name: With its dashes.
        value: Its text; None where none follows.
    """

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
    def is_file(self) -> bool:
        """Whether it names a configuration file."""
        return self.name in CONFIG_OPTIONS


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


def config_files(options: Iterable[Option]) -> list[Path]:
    """The configuration files that a command line names, in order.

    Raises:
        RequestError: One of them is missing or holds no settings.
    """
    files = [Path(option.value) for option in options if option.is_file and option.value is not None]
    for file in files:
        _check_file(file)
    return files


def _check_file(file: Path) -> None:
    """Refuse a file that is missing, is not YAML, or holds no settings."""
    if not file.is_file():
        raise RequestError(f"configuration file {file} does not exist\nthe shipped ones are in experiments/")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration file {file} cannot be read ({error})\nit must be YAML text") from error
    except RecursionError as error:
        raise RequestError(f"configuration file {file} nests too deeply to be read") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RequestError(
            f"configuration file {file} is not YAML: {getattr(error, 'problem', None) or error}\n"
            f"where: {file}{f', line {mark.line + 1}' if mark else ''}"
        ) from error
    if not isinstance(content, dict):
        raise RequestError(
            f"configuration file {file} holds no settings (YAML with one `key: value` a line)\n"
            "the shipped ones are in experiments/"
        )


class Origins:
    """Where the keys of a configuration were set.

    Args:
        options: The command line.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self._places: list[tuple[KeyPath, str, bool]] = []
        for option in options:
            if not option.is_file:
                self._places.append((without_spec(option.path), option.source.name, True))
            elif option.value is not None:
                source = Source(option.value)
                for path, line in key_lines(read_tree(Path(option.value))):
                    self._places.append((without_spec(path), source.place(line), False))
        self.files = ", ".join(option.value for option in options if option.is_file and option.value)

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
        return self.files or "command line"

    def ending_with(self, path: KeyPath) -> KeyPath:
        """The whole path of a key of which the parser gives only the last parts."""
        wanted = without_spec(path)
        return next((known for known, *_ in self._places if known[-len(wanted) :] == wanted), wanted)


def without_spec(path: Iterable[str]) -> KeyPath:
    """A key's path as messages show it."""
    return tuple(part for part in path if part not in SPEC)
