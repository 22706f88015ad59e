"""Type hints and signatures: the classes that a key allows, and their parameters as jsonargparse finds them."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from hafm_lightning.configuration.values import LISTS, MAPPINGS

PLAIN = (str, int, float, bool, bytes, complex, type(None))


@dataclass(frozen=True)
class Group:
    """A section whose class is fixed: its keys are the parameters, without ``class_path``."""

    target: type[Any]


class Kinds(NamedTuple):
    """What a type hint allows.

    Attributes:
        classes: Classes whose parameters may be set.
        elements: Types of the elements of a list.
        values: Types of the values of a mapping with free keys.
        scalars: Types of numbers, texts and truth values (None for null).
        open: Whether any value is allowed (``Any``), or a type that is not known here.
    """

    classes: tuple[Any, ...] = ()
    elements: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()
    scalars: tuple[Any, ...] = ()
    open: bool = False

    @property
    def has_text(self) -> bool:
        """Whether a number, a text or a truth value is allowed, so that a word need not name a class."""
        return not set(self.scalars) <= {None, type(None)}


def any_of(hints: tuple[Any, ...]) -> Any:
    """The union of type hints."""
    union: Any = typing.Union
    return union[hints]


def kinds_of(hint: Any) -> Kinds:
    """Take a type hint apart, through unions and aliases."""
    if isinstance(hint, Group):
        return Kinds(classes=(hint.target,))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kinds_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        *lists, opens = zip(*map(kinds_of, inner), strict=True)
        classes, elements, values, scalars = (tuple(itertools.chain(*parts)) for parts in lists)
        return Kinds(classes, elements, values, scalars, any(opens))
    base = origin or hint
    if base is typing.Literal or hint is None or base in PLAIN:
        return Kinds(scalars=(hint,))
    if base in LISTS:
        return Kinds(elements=tuple(kind for kind in inner if kind is not Ellipsis) or (Any,))
    if base in MAPPINGS:
        return Kinds(values=inner[1:] or (Any,))
    if not isinstance(base, type) or base.__module__ in ("builtins", "collections.abc", "typing"):
        return Kinds(open=True)
    return Kinds(scalars=(hint,)) if issubclass(base, enum.Enum | Path) else Kinds(classes=(base,))


def choices_of(hint: Any) -> Mapping[str, type[Any]]:
    """Name -> dataclass, where several dataclasses are allowed and the key ``kind`` names one; else empty."""
    kinds = kinds_of(hint)
    several = len(kinds.classes) > 1 and all(map(dataclasses.is_dataclass, kinds.classes))
    return {kind.__name__: kind for kind in kinds.classes} if several and not kinds.open else {}


@functools.cache
def parameters_of(target: Any) -> Mapping[str, Any] | None:
    """Names and types of the parameters of a class or function; None where they cannot be found."""
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if isinstance(target, type) else parser.add_function_arguments
    try:
        names = add(target, fail_untyped=False)
    except (AttributeError, ImportError, TypeError, ValueError):
        return None
    hints: dict[str, Any] = {}
    for kind in inspect.getmro(target) if isinstance(target, type) else (target,):
        try:
            found = typing.get_type_hints(kind.__dict__.get("__init__") if isinstance(kind, type) else kind)
        except (AttributeError, NameError, TypeError):  # no __init__ of its own, or types that only checkers import
            continue
        hints = {**found, **hints}
    return {name.partition(".")[0]: hints.get(name.partition(".")[0], Any) for name in names}


def takes_more(target: Any) -> bool:
    """Whether a class passes on arguments that its signature does not name."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def is_fixed(hint: Any, target: Any) -> bool:
    """Whether a section has its keys without ``class_path`` and ``init_args``."""
    return isinstance(hint, Group) or dataclasses.is_dataclass(target)


def load_class(name: str, bases: Sequence[Any]) -> Any:
    """The class or function at a dotted path, or the only imported subclass of that name; None if there is none."""
    module, _, last = name.rpartition(".")
    if module:
        try:
            return getattr(importlib.import_module(module), last, None)
        except (ImportError, TypeError, ValueError):  # TypeError: a name that begins with a dot
            return None
    found = {kind for kind in _subclasses(bases) if kind.__name__ == name}
    return next(iter(found)) if len(found) == 1 else None


def subclass_names(bases: Sequence[Any]) -> list[str]:
    """Names of the imported subclasses of ``bases``."""
    return sorted({kind.__name__ for kind in _subclasses(bases)})


def is_one_of(target: type[Any], bases: Sequence[Any]) -> bool:
    """Whether a class is a subclass of one of ``bases``; also true for a Protocol, which cannot be checked."""
    try:
        return any(not isinstance(base, type) or issubclass(target, base) for base in bases)
    except TypeError:
        return True


def _subclasses(bases: Sequence[Any]) -> set[Any]:
    """The classes and everything imported below them, without abstract ones."""
    found: set[Any] = set()
    waiting: list[Any] = [base for base in bases if isinstance(base, type)]
    while waiting:
        kind = waiting.pop()
        waiting += [below for below in type.__subclasses__(kind) if below not in found]
        found.add(kind)
    return {kind for kind in found if not inspect.isabstract(kind)}
