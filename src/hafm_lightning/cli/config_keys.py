"""Every key of a configuration is one that its class takes: checked before the parser reads it.

The parser names the deepest key that it could not place, often without the file, and it expands abbreviations. Here
the configuration files and the options are followed in the order in which the parser applies them, down the types of
the signatures: a section is a class with its parameters, ``class_path`` chooses a class, a dataclass is a section of
its own. Where the types leave open what may stand (``Any``), nothing is refused here and the parser decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hafm_lightning.cli.signatures import (
    Group,
    Kinds,
    any_of,
    is_fixed,
    kinds_of,
    load_class,
    never_implied,
    parameters_of,
    takes_more,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.suggestions import did_you_mean, guess, nearest
from hafm_lightning.yaml_keys import Source, entries, read_tree, refuse_duplicates, tree_of

SPEC = ("class_path", "init_args", "dict_kwargs")
"""Keys that say which class is meant, and with what; they are left out of a key's path."""
CONFIG_OPTIONS = ("--config", "-c")

KeyPath = tuple[str, ...]

REPLACED: Mapping[KeyPath, str] = {
    ("model", "attention"): "replaced by model.kernels: auto (the fastest attention of the device) or none (PyTorch's)",
    ("model", "compile_blocks"): "replaced by model.kernels: auto (compiles layers on CUDA) or none (compiles nothing)",
}
"""Keys of earlier versions, and what to write instead."""


def refusal(path: KeyPath, where: str, advice: str) -> RequestError:
    """What is told of a key that nothing takes."""
    return RequestError(f"unknown key {'.'.join(path)!r}\nwhere: {where}\n{advice}")


def unknown_key(path: KeyPath, where: str, known: Mapping[str, Any], spec: Sequence[str] = ()) -> RequestError:
    """The same with the nearest names, else with the section in which there is a key of this name."""
    if path in REPLACED:
        return refusal(path, where, REPLACED[path])
    key, near = path[-1], nearest(path[-1], [*known, *spec])
    if not near:
        for name, hint in known.items():
            kinds = (hint.target,) if isinstance(hint, Group) else kinds_of(hint).classes
            fixed = [kind for kind in kinds if is_fixed(hint, kind)]
            near += [f"{name}.{key}" for kind in fixed if key in (parameters_of(kind) or ())]
    return refusal(path, where, did_you_mean(near) if near else guess(key, list(known)))


class KeyCheck:
    """Follows configuration files and options, and refuses a key that nothing takes.

    Args:
        sections: Name of a key at the top -> its type, or :class:`Group`.
        switches: Options that the parser has beside these keys, such as ``--help``.
    """

    def __init__(self, sections: Mapping[str, Any], switches: Sequence[str] = ()) -> None:
        self._sections, self._switches = sections, frozenset(switches)
        self._classes: dict[KeyPath, Any] = {}
        self._lengths: dict[KeyPath, int] = {}

    def arguments(self, arguments: Sequence[str]) -> None:
        """Check a command line, and the files that it names, from left to right.

        Raises:
            RequestError: With the key, its place, and what was probably meant.
        """
        place = 0
        while place < len(arguments):
            argument, place = arguments[place], place + 1
            if argument == "--":
                break
            if not argument.startswith("--") and argument.partition("=")[0] not in CONFIG_OPTIONS:
                continue
            name, equals, text = argument.partition("=")
            value = text if equals else None
            if value is None and place < len(arguments) and not arguments[place].startswith("--"):
                value, place = arguments[place], place + 1
            if name in CONFIG_OPTIONS:
                if value is not None:
                    self.file(Path(value))
            else:
                self._option(name, value)

    def file(self, file: Path) -> None:
        """Check a configuration file."""
        tree, source = read_tree(file), Source(str(file))
        refuse_duplicates(tree, source)
        if isinstance(tree, yaml.MappingNode):
            for entry in entries(tree):
                if entry.key not in self._sections:
                    raise unknown_key((entry.key,), source.place(entry.line), self._sections)
                self._value(entry.value, self._sections[entry.key], (entry.key,), source)

    # --- options ----------------------------------------------------------------------------------------------

    def _option(self, name: str, value: str | None) -> None:
        parts = name.removeprefix("--").removesuffix("+").split(".")
        if (name in self._switches and parts[0] not in self._sections) or parts[-1] == "help":
            return
        source = Source(f"command line: {name.removesuffix('+')}", is_file=False)
        if parts[0] not in self._sections:
            switches = {name[2:].partition(".")[0]: Any for name in self._switches if name.startswith("--")}
            raise unknown_key((parts[0],), source.name, {**switches, **self._sections})
        path: KeyPath = (parts[0],)
        hint = self._sections[parts[0]]
        for place, part in enumerate(parts[1:], 1):
            below = self._below(hint, path, part, source)
            if below is None:
                return
            if part == "init_args" and below == (hint, path):
                continue
            if part == "class_path" and below == (hint, path):
                self._choose(value or "", hint, path)
                return
            if part == "dict_kwargs" and below == (hint, path):
                for key in parts[place + 1 : place + 2]:
                    self._extra(key, self._class_at(hint, path), path, source.name)
                return
            hint, path = below
        if value is None:
            return
        tree = tree_of(value, source)
        refuse_duplicates(tree, source)
        if name.endswith("+"):
            self._append(tree, hint, path, source)
        elif parts[-1] == "init_args" and isinstance(tree, yaml.MappingNode):
            self._parameters(tree, self._class_at(hint, path), path, source)
        else:
            self._value(tree, hint, path, source)

    def _below(self, hint: Any, path: KeyPath, part: str, source: Source) -> tuple[Any, KeyPath] | None:
        """Type and path of a key one step further down; None where it cannot be told."""
        target, kinds = self._class_at(hint, path), kinds_of(hint)
        names = parameters_of(target) if target is not None else None
        if names is not None and part in names:
            return names[part], (*path, part)
        spec = () if is_fixed(hint, target) else SPEC
        if kinds.classes and part in spec:
            return hint, path
        if target is not None:
            if names is None:
                return None
            raise unknown_key((*path, part), source.name, names, spec)
        if kinds.elements:
            return self._below_list(kinds, path, part, source)
        if kinds.values:
            return any_of(kinds.values), (*path, part)
        self._refuse_without_class(kinds, path, part, source)
        if kinds.open or kinds.classes:
            return None
        advice = f"{'.'.join(path)!r} takes a value and has no keys of its own"
        raise refusal((*path, part), source.name, advice)

    def _refuse_without_class(self, kinds: Kinds, path: KeyPath, part: str, source: Source) -> None:
        """Refuse a key of a class where none is named yet and the parser assumes none."""
        if kinds.classes and path not in self._classes and not kinds.open and never_implied(kinds.classes):
            dotted = ".".join(path)
            advice = f"no class is named for {dotted!r}: do so before this key, with --{dotted} CLASS"
            raise refusal((*path, part), source.name, advice)

    def _below_list(self, kinds: Kinds, path: KeyPath, part: str, source: Source) -> tuple[Any, KeyPath] | None:
        """A key of the last element of a list, to which the parser applies it."""
        dotted = ".".join(path)
        if part.isdigit():
            advice = (
                f"--{dotted}+=CLASS appends to this list and --{dotted}.KEY then sets a key of its last element;\n"
                "other elements are changed in the file"
            )
            raise refusal((*path, part), source.name, advice)
        element = any_of(kinds.elements)
        inner = kinds_of(element)
        if not (inner.classes or inner.values or inner.open or kinds.open or kinds.classes):
            raise refusal((*path, part), source.name, f"{dotted!r} takes a list of values and has no keys of its own")
        last = self._lengths.get(path, 0) - 1
        if last >= 0:
            return self._below(element, (*path, str(last)), part, source)
        self._refuse_without_class(inner, path, part, source)
        return None

    def _append(self, tree: yaml.Node | None, hint: Any, path: KeyPath, source: Source) -> None:
        elements = kinds_of(hint).elements
        if not elements or tree is None:
            return
        first = self._lengths.get(path, 0)
        values = tree.value if isinstance(tree, yaml.SequenceNode) else [tree]
        for number, value in enumerate(values, first):
            self._value(value, any_of(elements), (*path, str(number)), source)
        self._lengths[path] = first + len(values)

    # --- values -----------------------------------------------------------------------------------------------

    def _value(self, node: yaml.Node | None, hint: Any, path: KeyPath, source: Source) -> None:
        """Check what stands at a key."""
        kinds = Kinds((hint.target,), (), (), False, False) if isinstance(hint, Group) else kinds_of(hint)
        if isinstance(node, yaml.SequenceNode):
            if kinds.elements:
                self._forget(path)
                self._lengths[path] = 0
                self._append(node, hint, path, source)
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, hint, kinds, path, source)
        elif isinstance(node, yaml.ScalarNode) and kinds.classes:
            text = str(node.value)
            file = Path(source.name).parent / text if source.is_file else Path(text)
            if file.suffix in (".yaml", ".yml") and file.is_file():
                tree, of_file = read_tree(file), Source(str(file))
                refuse_duplicates(tree, of_file)
                if isinstance(tree, yaml.MappingNode):
                    self._mapping(tree, hint, kinds, path, of_file)
            elif not isinstance(hint, Group):
                self._choose(text, hint, path)

    def _mapping(self, node: yaml.MappingNode, hint: Any, kinds: Kinds, path: KeyPath, source: Source) -> None:
        by_key = {entry.key: entry for entry in entries(node)}
        class_path = by_key.get("class_path")
        if class_path is not None and not isinstance(hint, Group):
            self._choose(str(class_path.value.value), hint, path)
        target = self._class_at(hint, path)
        names = parameters_of(target) if target is not None else None
        is_spec = class_path is not None or bool({"init_args", "dict_kwargs"} & by_key.keys() - set(names or ()))
        if isinstance(hint, Group) or not (kinds.classes or kinds.open) or not is_spec:
            if target is not None:
                self._parameters(node, target, path, source, () if is_fixed(hint, target) else SPEC)
            elif kinds.values and not kinds.classes:
                for entry in by_key.values():
                    below = any_of(kinds.values)
                    self._value(entry.value, below, (*path, entry.key), source)
            return
        for entry in by_key.values():
            if entry.key not in SPEC and kinds.classes:
                here, where = (*path, entry.key), source.place(entry.line)
                if entry.key in (names or ()):
                    raise refusal(here, where, did_you_mean([f"init_args.{entry.key}"]))
                raise unknown_key(here, where, names or {}, SPEC)
        for key in SPEC[1:]:
            inside = by_key[key].value if key in by_key else None
            if isinstance(inside, yaml.MappingNode):
                if key == "init_args":
                    self._parameters(inside, target, path, source)
                else:
                    for entry in entries(inside):
                        self._extra(entry.key, target, path, source.place(entry.line))

    def _parameters(
        self, node: yaml.MappingNode, target: Any, path: KeyPath, source: Source, spec: Sequence[str] = ()
    ) -> None:
        names = parameters_of(target) if target is not None else None
        if names is None:
            return
        for entry in entries(node):
            if entry.key not in names:
                raise unknown_key((*path, entry.key), source.place(entry.line), names, spec)
            self._value(entry.value, names[entry.key], (*path, entry.key), source)

    def _extra(self, key: str, target: Any, path: KeyPath, where: str) -> None:
        """A key below ``dict_kwargs``: only for a class that takes more than it names."""
        names = parameters_of(target) if target is not None else None
        if names is not None and key not in names and not takes_more(target):
            raise unknown_key((*path, key), where, names)

    # --- classes ----------------------------------------------------------------------------------------------

    def _class_at(self, hint: Any, path: KeyPath) -> Any:
        """The class whose keys stand at a path; None where none is known."""
        if isinstance(hint, Group):
            return hint.target
        if path in self._classes:
            return self._classes[path]
        found = [kind for kind in kinds_of(hint).classes if dataclasses.is_dataclass(kind)]
        return found[0] if len(found) == 1 and not kinds_of(hint).open else None

    def _choose(self, name: str, hint: Any, path: KeyPath) -> None:
        """A ``class_path``, or a value in its place, was given."""
        kinds = kinds_of(hint)
        target = load_class(name, kinds.classes)
        if target is None or self._classes.get(path) is not target:
            self._forget(path)
        if callable(target):
            self._classes[path] = target
        elif "." in name or not kinds.plain:  # a class that cannot be found, of which the parser tells
            self._classes[path] = None

    def _forget(self, path: KeyPath) -> None:
        """Another value takes the place of what was chosen at and below a path."""
        for table in (self._classes, self._lengths):
            for known in [known for known in table if known[: len(path)] == path]:
                del table[known]
