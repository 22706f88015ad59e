"""Checks before parsing that a class takes every key of a configuration, and that every value is of the key's type.

The parser names the deepest key that it could not use, often without the file, and expands abbreviations. This check
follows the configuration files and the options in the order in which the parser applies them, down the types of the
signatures: a section is a class with its parameters, ``class_path`` chooses a class, ``kind`` one of several
dataclasses, a dataclass is a section of its own. Values are checked where the types name no class. Where the types
allow anything (``Any``), the parser decides.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from inspect import isabstract
from pathlib import Path
from typing import Any

import yaml

from hafm_lightning.configuration.origins import SPEC, KeyPath, Option, Source, entries, read_tree, tree_of
from hafm_lightning.configuration.signatures import (
    Group,
    Kinds,
    any_of,
    choices_of,
    is_fixed,
    is_one_of,
    kinds_of,
    load_class,
    parameters_of,
    subclass_names,
    takes_more,
)
from hafm_lightning.configuration.suggestions import did_you_mean, guess, nearest
from hafm_lightning.configuration.values import plain_value, value_as, whole_number
from hafm_lightning.errors import RequestError

KIND = "kind"
"""Key that chooses among several dataclasses."""
MESSAGE_LENGTH = 400
"""Characters of a message's first line, where the value may be a whole section."""

REPLACED: Mapping[KeyPath, str] = {
    ("model", "attention"): "replaced by model.kernels: auto (the fastest attention of the device) or none (PyTorch's)",
    ("model", "compile_blocks"): "replaced by model.kernels: auto (compiles layers on CUDA) or none (compiles nothing)",
}
"""Keys of earlier versions, and what to write instead."""


def refusal(path: KeyPath, where: str, advice: str) -> RequestError:
    """The error for a key that nothing takes."""
    return RequestError(f"unknown key {'.'.join(path)!r}\nwhere: {where}\n{advice}")


def unknown_key(path: KeyPath, where: str, known: Mapping[str, Any], spec: Sequence[str] = ()) -> RequestError:
    """The same with the nearest names, else with the section that has a key of this name."""
    if path in REPLACED:
        return refusal(path, where, REPLACED[path])
    key, near = path[-1], nearest(path[-1], [*known, *spec])
    if not near:
        for name, hint in known.items():
            fixed = [kind for kind in kinds_of(hint).classes if is_fixed(hint, kind)]
            near += [f"{name}.{key}" for kind in fixed if key in (parameters_of(kind) or ())]
    return refusal(path, where, did_you_mean(near) if near else guess(key, list(known)))


def wrong_value(path: KeyPath, expected: str, value: Any, where: str) -> RequestError:
    """The error for a value of another type."""
    return RequestError(f"{'.'.join(path)!r} must be {expected}, got {value!r}"[:MESSAGE_LENGTH] + f"\nwhere: {where}")


def kind_of(
    value: Any, choices: Mapping[str, type[Any]], path: KeyPath, where: str, chosen: type[Any] | None = None
) -> type[Any]:
    """The dataclass that the key ``kind`` of the section at ``path`` names; without it the one ``chosen`` before."""
    if value is None and chosen is not None:
        return chosen
    if value in choices:
        return choices[value]
    what = "is missing" if value is None else f"cannot be {value!r}"
    raise RequestError(f"{'.'.join((*path, KIND))!r} {what}\nwhere: {where}\n{guess(str(value), list(choices))}")


def unknown_class(name: str, bases: Sequence[Any], where: str) -> RequestError:
    """The error for a ``class_path`` that names no class, with the nearest classes of its module or below ``bases``."""
    module, _, last = name.rpartition(".")
    if not module:
        problem, known = "no class has this name", subclass_names(bases)
    else:
        problem, known = f"module {module} has no {last}", []
        try:
            content = vars(importlib.import_module(module))
        except (ImportError, TypeError, ValueError) as error:
            problem, content = str(error), {}
        for public, value in content.items():
            own = isinstance(value, type) and value.__module__.partition(".")[0] == module.partition(".")[0]
            known += [public] * (own and not public.startswith("_"))
    return RequestError(f"class_path {name!r}: {problem}\nwhere: {where}\n{guess(last, known)}")


class KeyCheck:
    """Follows configuration files and options, and refuses keys that nothing takes and values of another type.

    Args:
        sections: Name of a key at the top -> its type, or :class:`Group`.
        switches: Options that the parser has beside these keys, such as ``--help``.
        numbered: Whether elements of a list are named by their number on the command line, ``--corpora.0.path``.
    """

    def __init__(self, sections: Mapping[str, Any], switches: Sequence[str] = (), numbered: bool = False) -> None:
        self._sections, self._switches, self._numbered = sections, frozenset(switches), numbered
        self._classes: dict[KeyPath, Any] = {}
        self._lengths: dict[KeyPath, int] = {}
        self.whole_numbers: dict[str, tuple[str, str]] = {}  # option -> its text such as 1e3, and the int that it means

    def options(self, options: Iterable[Option]) -> None:
        """Check a command line, and the files that it names, from left to right."""
        for option in options:
            if option.file is None:
                self._option(option)
                continue
            source = Source(str(option.file))
            for key, line, value in entries(read_tree(option.file)):
                if key not in self._sections:
                    raise unknown_key((key,), source.place(line), self._sections)
                self._value(value, self._sections[key], (key,), source)

    # --- options ----------------------------------------------------------------------------------------------

    def _option(self, option: Option) -> None:
        parts, value, source = option.path, option.value, option.source
        if (option.name in self._switches and parts[0] not in self._sections) or parts[-1] == "help":
            return
        if not option.name.startswith("--") or parts[0] not in self._sections:
            switches = {name[2:].partition(".")[0]: Any for name in self._switches if name.startswith("--")}
            raise unknown_key((parts[0],), source.name, {**switches, **self._sections})
        path: KeyPath = (parts[0],)
        hint = self._sections[parts[0]]
        for number, part in enumerate(parts[1:], 1):
            if part == KIND and choices_of(hint):
                self._choose_kind(value, hint, path, source.name)
                return
            below = self._below(hint, path, part, source)
            if below is None:
                return
            if below != (hint, path):
                hint, path = below
            elif part == "class_path":
                self._choose(value or "", hint, path, source.name)
                return
            elif part == "dict_kwargs":
                for key in parts[number + 1 : number + 2]:
                    self._extra(key, self._class_at(hint, path), path, source.name)
                return
        if value is None:
            raise RequestError(f"{option.name} needs a value\nwhere: command line\nwrite {option.name} VALUE")
        tree = tree_of(value, source)
        if option.name.endswith("+"):
            self._append(tree, hint, path, source)
        elif parts[-1] == "init_args" and isinstance(tree, yaml.MappingNode):
            self._parameters(tree, self._class_at(hint, path), path, source)
        else:
            self._value(tree, hint, path, source, value)

    def _below(self, hint: Any, path: KeyPath, part: str, source: Source) -> tuple[Any, KeyPath] | None:
        """Type and path of a key one step further down (the same for a key of SPEC); None where the types end."""
        target, kinds, dotted = self._class_at(hint, path), kinds_of(hint), ".".join(path)
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
        raise refusal((*path, part), source.name, f"{dotted!r} takes a value and has no keys of its own")

    def _refuse_without_class(self, kinds: Kinds, path: KeyPath, part: str, source: Source) -> None:
        """Refuse a key of a class where none is named yet and the parser assumes none."""
        has_default = any(not (isabstract(k) or k.__module__.startswith("lightning.")) for k in kinds.classes)
        if kinds.classes and path not in self._classes and not kinds.open and not has_default:
            dotted = ".".join(path)
            advice = f"no class is named for {dotted!r}: do so before this key, with --{dotted} CLASS"
            raise refusal((*path, part), source.name, advice)

    def _below_list(self, kinds: Kinds, path: KeyPath, part: str, source: Source) -> tuple[Any, KeyPath] | None:
        """A key of the last element of a list, to which the parser applies it."""
        element, dotted = any_of(kinds.elements), ".".join(path)
        if part.isdigit():
            if self._numbered:
                return element, (*path, part)
            advice = (
                f"--{dotted}+=CLASS appends to this list and --{dotted}.KEY then sets a key of its last element;\n"
                "other elements are changed in the file"
            )
            raise refusal((*path, part), source.name, advice)
        inner = kinds_of(element)
        if not (inner.classes or inner.values or inner.open or kinds.open or kinds.classes):
            raise refusal((*path, part), source.name, f"{dotted!r} takes a list of values and has no keys of its own")
        length = self._lengths.get(path, 0)
        if length:
            return self._below(element, (*path, str(length - 1)), part, source)
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

    def _value(self, node: yaml.Node | None, hint: Any, path: KeyPath, source: Source, text: str | None = None) -> None:
        """Check the value of a key; ``text`` is its text on the command line, where a number may be meant as one."""
        kinds = kinds_of(hint)
        if isinstance(node, yaml.SequenceNode) and kinds.elements:
            self._forget(path)
            self._append(node, hint, path, source)
        elif isinstance(node, yaml.MappingNode) and (kinds.classes or kinds.values):
            self._mapping(node, hint, kinds, path, source)
        elif isinstance(node, yaml.ScalarNode) and kinds.classes:
            self._name(node, hint, kinds, path, source)
        elif node is not None and not kinds.classes and not kinds.open:
            value = plain_value(node)
            if value is None or "${" in str(value):  # null is the parser's to judge, ${...} is known later
                return
            try:
                given = value_as(value, hint)
                if text is not None and type(given) is int and whole_number(text) is not None:
                    self.whole_numbers[source.name] = (text, str(given))
            except ValueError as error:
                if text is None or str not in (hint, *kinds.scalars):
                    raise wrong_value(path, str(error), value, source.place(node.start_mark.line + 1)) from error

    def _name(self, node: yaml.ScalarNode, hint: Any, kinds: Kinds, path: KeyPath, source: Source) -> None:
        """A text in the place of a section: a file that holds it, or the name of its class."""
        text, value, place = str(node.value), plain_value(node), source.place(node.start_mark.line + 1)
        if value is None:
            self._forget(path)
            return
        file = Path(source.name).parent / text if source.is_file else Path(text)
        if file.suffix in (".yaml", ".yml") and file.is_file():
            self._mapping(read_tree(file), hint, kinds, path, Source(str(file)))
        elif not all(is_fixed(hint, kind) for kind in kinds.classes):
            self._choose(text, hint, path, place)
        elif "${" not in text and not kinds.has_text and not kinds.open:
            raise wrong_value(path, "settings (key: value)", value, place)

    def _mapping(self, node: yaml.MappingNode, hint: Any, kinds: Kinds, path: KeyPath, source: Source) -> None:
        by_key = {entry.key: entry for entry in entries(node)}
        if choices_of(hint):
            kind = by_key.get(KIND)
            place = source.place(kind.line if kind is not None else node.start_mark.line + 1)
            target = self._choose_kind(None if kind is None else str(kind.value.value), hint, path, place)
            self._parameters(node, target, path, source, (KIND,))
            return
        class_path = by_key.get("class_path")
        if class_path is not None and not isinstance(hint, Group):
            self._choose(str(class_path.value.value), hint, path, source.place(class_path.line), is_key=True)
        target = self._class_at(hint, path)
        names = (parameters_of(target) if target is not None else None) or {}
        is_spec = class_path is not None or bool({"init_args", "dict_kwargs"} & by_key.keys() - set(names))
        if isinstance(hint, Group) or not (kinds.classes or kinds.open) or not is_spec:
            if target is not None:
                self._parameters(node, target, path, source, () if is_fixed(hint, target) else SPEC)
            elif kinds.values and not kinds.classes:
                for key, _, value in by_key.values():
                    self._value(value, any_of(kinds.values), (*path, key), source)
            return
        for key, line, value in by_key.values():
            if key not in SPEC and kinds.classes:
                if key in names:
                    raise refusal((*path, key), source.place(line), did_you_mean([f"init_args.{key}"]))
                raise unknown_key((*path, key), source.place(line), names, SPEC)
            if key == "init_args" and isinstance(value, yaml.MappingNode):
                self._parameters(value, target, path, source)
            elif key == "dict_kwargs" and isinstance(value, yaml.MappingNode):
                for entry in entries(value):
                    self._extra(entry.key, target, path, source.place(entry.line))

    def _parameters(
        self, node: yaml.MappingNode, target: Any, path: KeyPath, source: Source, spec: Sequence[str] = ()
    ) -> None:
        names = parameters_of(target) if target is not None else None
        if names is None:
            return
        for key, line, value in entries(node):
            if key == KIND and KIND in spec:
                continue
            if key not in names:
                raise unknown_key((*path, key), source.place(line), names, spec)
            self._value(value, names[key], (*path, key), source)

    def _extra(self, key: str, target: Any, path: KeyPath, where: str) -> None:
        """A key below ``dict_kwargs``: only for a class that takes more than it names."""
        names = parameters_of(target) if target is not None else None
        if names is not None and key not in names and not takes_more(target):
            raise unknown_key((*path, key), where, names)

    # --- classes ----------------------------------------------------------------------------------------------

    def _class_at(self, hint: Any, path: KeyPath) -> Any:
        """The class of the section at a path; None where none is known."""
        if isinstance(hint, Group):
            return hint.target
        if path in self._classes:
            return self._classes[path]
        found = [kind for kind in kinds_of(hint).classes if dataclasses.is_dataclass(kind)]
        return found[0] if len(found) == 1 and not kinds_of(hint).open else None

    def _choose_kind(self, kind: str | None, hint: Any, path: KeyPath, where: str) -> type[Any]:
        """The ``kind`` of a section that may be one of several dataclasses."""
        target = kind_of(kind, choices_of(hint), path, where, self._classes.get(path))
        if self._classes.get(path) is not target:
            self._forget(path)
        self._classes[path] = target
        return target

    def _choose(self, name: str, hint: Any, path: KeyPath, where: str, is_key: bool = False) -> None:
        """A ``class_path``, or a value in its place, was given."""
        kinds = kinds_of(hint)
        target = load_class(name, kinds.classes)
        if target is None or self._classes.get(path) is not target:
            self._forget(path)
        if callable(target):
            self._classes[path] = target
        elif "." in name:
            self._classes[path] = None  # not known
        if "${" in name or kinds.open or (kinds.has_text and not is_key):
            return
        if target is None:
            if name not in subclass_names(kinds.classes):
                raise unknown_class(name, kinds.classes, where)
            self._classes[path] = None  # a name of several classes, which the parser reports
        elif isinstance(target, type) and not is_one_of(target, kinds.classes):
            bases = " or ".join(base.__name__ for base in kinds.classes)
            raise RequestError(f"class_path {name!r}: this class is no {bases}\nwhere: {where}")

    def _forget(self, path: KeyPath) -> None:
        """Drop the choices at and below a path, since another value replaces them."""
        for table in (self._classes, self._lengths):
            for known in [known for known in table if known[: len(path)] == path]:
                del table[known]
