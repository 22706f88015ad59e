"""The keys of YAML text with the lines on which they stand, so that a mistake can be told with its place.

PyYAML's loader keeps the last of two equal keys without a word; here such a pair is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from hafm_lightning.errors import RequestError

MERGE_TAG = "tag:yaml.org,2002:merge"
"""Of the key ``<<``, which takes over the keys of another mapping."""


@dataclass(frozen=True)
class Source:
    """Where YAML text comes from.

    Attributes:
        name: A file, or ``command line: --option``.
        is_file: Whether lines are counted.
    """

    name: str
    is_file: bool = True

    def place(self, line: int) -> str:
        """The source, with the line where it is a file."""
        return f"{self.name}, line {line}" if self.is_file else self.name


@dataclass(frozen=True)
class Entry:
    """One ``key: value`` of a mapping; ``line`` is the key's, from 1."""

    key: str
    line: int
    value: yaml.Node


def read_tree(file: Path) -> yaml.Node | None:
    """The syntax tree of a YAML file; None where it is empty or is no YAML (of which the loader tells)."""
    return tree_of(file.read_text(encoding="utf-8"), Source(str(file)))


def tree_of(text: str, source: Source) -> yaml.Node | None:
    """The syntax tree of YAML text; None where it is empty or is no YAML.

    Raises:
        RequestError: It nests deeper than Python's stack.
    """
    try:
        tree: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    except RecursionError as error:
        raise RequestError(f"{source.name} nests too deeply to be read") from error
    return tree


def entries(node: yaml.MappingNode) -> list[Entry]:
    """The keys of a mapping, with those that it takes over by ``<<`` and does not set itself."""
    found: dict[str, Entry] = {}
    merged: list[yaml.Node] = []
    seen: set[int] = {id(node)}

    def collect(mapping: yaml.MappingNode) -> None:
        for key, value in mapping.value:
            if key.tag == MERGE_TAG:
                merged.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            elif isinstance(key, yaml.ScalarNode):
                found.setdefault(str(key.value), Entry(str(key.value), key.start_mark.line + 1, value))

    collect(node)
    while merged:
        mapping = merged.pop(0)
        if isinstance(mapping, yaml.MappingNode) and id(mapping) not in seen:
            seen.add(id(mapping))
            collect(mapping)
    return list(found.values())


def refuse_duplicates(tree: yaml.Node | None, source: Source) -> None:
    """Refuse a mapping that sets a key twice.

    Raises:
        RequestError: With the key and both lines.
    """
    seen: set[int] = set()
    waiting: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(tree, ())]
    while waiting:
        node, above = waiting.pop(0)
        if node is None or id(node) in seen:  # an alias stands for a node that was looked at already
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(value, (*above, str(number))) for number, value in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG and name in lines:
                places = f"{source.name}, lines {lines[name]} and {line}" if source.is_file else source.name
                raise RequestError(
                    f"key {'.'.join((*above, name))!r} is set twice\nwhere: {places}\nkeep one of the two"
                )
            lines[name] = line
            waiting.append((value, (*above, name)))


def key_lines(tree: yaml.Node | None) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key with its path (elements of lists by number) and its line; each node once, aliases not again."""
    seen: set[int] = set()
    waiting: list[tuple[yaml.Node | None, tuple[str, ...]]] = [(tree, ())]
    while waiting:
        node, above = waiting.pop(0)
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(value, (*above, str(number))) for number, value in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            for entry in entries(node):
                yield (*above, entry.key), entry.line
                waiting.append((entry.value, (*above, entry.key)))
