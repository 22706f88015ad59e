"""Configuration files and command lines in pieces, and where each key was set: file and line, or option."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from hafm_lightning.errors import RequestError

SPEC = ("class_path", "init_args", "dict_kwargs")
"""Keys that name a class and its arguments; messages leave them out of a key's path."""
CONFIG_OPTIONS = ("--config", "-c")
SHIPPED_CONFIGURATIONS = (
    "the shipped ones are in experiments/; `python -m hafm_lightning configs --copy .` writes them here"
)
"""Advice for messages about a missing configuration."""
MERGE_TAG = "tag:yaml.org,2002:merge"
"""Of the key ``<<``, which takes over the keys of another mapping."""

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The origin of YAML text: a file, whose lines are counted, or ``command line: --option``."""

    name: str
    is_file: bool = True

    def place(self, *lines: int) -> str:
        """The source, with its lines where it is a file."""
        if not self.is_file:
            return self.name
        return f"{self.name}, line{'s' if len(lines) > 1 else ''} {' and '.join(map(str, lines))}"


class Entry(NamedTuple):
    """One ``key: value`` of a mapping; ``line`` is the key's, from 1."""

    key: str
    line: int
    value: yaml.Node


def looked_from(path: Path) -> str:
    """The folder in which a relative path was looked for, for messages; empty for an absolute path."""
    return "" if path.is_absolute() else f" (looked for in {Path.cwd()})"


def read_tree(file: Path) -> yaml.MappingNode:
    """The syntax tree of a configuration file; RequestError if it is missing, broken or empty."""
    if not file.is_file():
        raise RequestError(f"configuration file {file} does not exist{looked_from(file)}\n{SHIPPED_CONFIGURATIONS}")
    try:
        text = file.read_text(encoding="utf-8")
        yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration file {file} cannot be read ({error})\nit must be YAML text") from error
    except RecursionError as error:
        raise RequestError(f"configuration file {file} nests too deeply to be read") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RequestError(
            f"configuration file {file} is not YAML: {getattr(error, 'problem', None) or error}\n"
            f"where: {Source(str(file)).place(mark.line + 1) if mark else file}"
        ) from error
    tree = tree_of(text, Source(str(file)))
    if not isinstance(tree, yaml.MappingNode):
        raise RequestError(
            f"configuration file {file} holds no settings (YAML with one `key: value` a line)\n{SHIPPED_CONFIGURATIONS}"
        )
    return tree


def tree_of(text: str, source: Source) -> yaml.Node | None:
    """The syntax tree of YAML text; None if it is empty or not YAML. RequestError if a key is set twice."""
    try:
        tree: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    except RecursionError as error:
        raise RequestError(f"{source.name} nests too deeply to be read") from error
    for above, mapping in _mappings(tree):
        lines: dict[str, int] = {}  # of two equal keys PyYAML would keep the last
        for key, _ in mapping.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG and name in lines:
                where = source.place(lines[name], line)
                path = ".".join((*above, name))
                raise RequestError(f"key {path!r} is set twice\nwhere: {where}\nkeep one of the two")
            lines[name] = line
    return tree


def entries(node: yaml.MappingNode) -> list[Entry]:
    """The keys of a mapping, with those that it takes over by ``<<`` and does not set itself."""
    found: dict[str, Entry] = {}
    waiting: list[yaml.Node] = [node]
    seen: set[int] = set()
    while waiting:
        mapping = waiting.pop(0)
        if not isinstance(mapping, yaml.MappingNode) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.value:
            if key.tag == MERGE_TAG:
                waiting.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            elif isinstance(key, yaml.ScalarNode):
                found.setdefault(str(key.value), Entry(str(key.value), key.start_mark.line + 1, value))
    return list(found.values())


def _mappings(tree: yaml.Node | None) -> Iterator[tuple[KeyPath, yaml.MappingNode]]:
    """Every mapping with its path; each once, since an alias stands for a node that came before."""
    seen: set[int] = set()
    waiting: list[tuple[KeyPath, yaml.Node | None]] = [((), tree)]
    while waiting:
        path, node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [((*path, str(number)), value) for number, value in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            yield path, node
            for key, value in node.value:
                waiting.append((path if key.tag == MERGE_TAG else (*path, str(key.value)), value))


@dataclass(frozen=True)
class Option:
    """One option of a command line: its name with dashes, and its text, if any."""

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
    """The options of a command line up to ``--``, in order; ``key=value`` is ``--key value``."""
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


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """The command line with ``key=value`` as ``--key=value``, for parsers that know options alone."""
    written: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*written, argument, *waiting]
        is_option = argument.startswith("-")
        written.append(argument if is_option or "=" not in argument else f"--{argument}")
        if is_option and "=" not in argument and waiting and not waiting[0].startswith("--"):
            written.append(waiting.pop(0))
    return written


class Origins:
    """Where the keys of a configuration were set; RequestError if a file of the command line is missing or broken."""

    def __init__(self, options: Sequence[Option]) -> None:
        self._places: list[tuple[KeyPath, str, bool]] = []
        self.files: list[Path] = []
        for option in options:
            if option.file is None:
                self._places.append((without_spec(option.path), option.source.name, True))
                continue
            self.files.append(option.file)
            source = Source(str(option.file))
            for above, mapping in _mappings(read_tree(option.file)):
                for key, line, _ in entries(mapping):
                    self._places.append((without_spec((*above, key)), source.place(line), False))

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
