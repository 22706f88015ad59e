"""Type hints and signatures as the configuration sees them: which classes may stand at a key, and what they take.

The parameters of a class are those that jsonargparse finds, also behind ``**kwargs``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from hafm_lightning.configuration.values import LISTS, MAPPINGS

PLAIN = (str, int, float, bool, bytes, complex, type(None))


@dataclass(frozen=True)
class Group:
    """A section whose class is fixed: its keys are the parameters, without ``class_path``."""

    target: type[Any]


@dataclass(frozen=True)
class Kinds:
    """What a type hint allows.

    Attributes:
        classes: Classes whose parameters may be set.
        elements: Types of the elements, where a list may stand.
        values: Types of the values, where a mapping with free keys may stand.
        scalars: Types of the numbers, texts and truth values that may stand (None for null).
        open: Whether anything may stand (``Any``), or something that is not known here.
    """

    classes: tuple[Any, ...]
    elements: tuple[Any, ...]
    values: tuple[Any, ...]
    scalars: tuple[Any, ...]
    open: bool

    @property
    def has_text(self) -> bool:
        """Whether a number, a text or a truth value may stand, so that a word need not name a class."""
        return not set(self.scalars) <= {None, type(None)}


def any_of(hints: tuple[Any, ...]) -> Any:
    """The type hint that stands for any of several."""
    union: Any = typing.Union
    return union[hints]


def kinds_of(hint: Any) -> Kinds:
    """Take a type hint apart, through unions and aliases."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kinds_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        parts = [kinds_of(part) for part in inner]
        return Kinds(
            tuple(kind for part in parts for kind in part.classes),
            tuple(kind for part in parts for kind in part.elements),
            tuple(kind for part in parts for kind in part.values),
            tuple(kind for part in parts for kind in part.scalars),
            any(part.open for part in parts),
        )
    base = origin or hint
    if base is typing.Literal or hint is None or base in PLAIN:
        return Kinds((), (), (), scalars=(hint,), open=False)
    if base in LISTS:
        elements = tuple(kind for kind in inner if kind is not Ellipsis)
        return Kinds((), elements or (Any,), (), scalars=(), open=False)
    if base in MAPPINGS:
        return Kinds((), (), inner[1:] or (Any,), scalars=(), open=False)
    if isinstance(base, type) and issubclass(base, enum.Enum | Path):
        return Kinds((), (), (), scalars=(hint,), open=False)
    is_class = isinstance(base, type) and base.__module__ not in ("builtins", "collections.abc", "typing")
    return Kinds((base,) if is_class else (), (), (), scalars=(), open=not is_class)


def choices_of(hint: Any) -> Mapping[str, type[Any]]:
    """Name -> dataclass, where several dataclasses may stand and the key ``kind`` names one; else empty."""
    kinds = kinds_of(hint)
    several = len(kinds.classes) > 1 and all(map(dataclasses.is_dataclass, kinds.classes))
    return {kind.__name__: kind for kind in kinds.classes} if several and not kinds.open else {}


@functools.cache
def parameters_of(target: Any) -> Mapping[str, Any] | None:
    """Names and types of what a class or function takes; None where they cannot be found."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        if isinstance(target, type):
            names = parser.add_class_arguments(target, fail_untyped=False)
        else:
            names = parser.add_function_arguments(target, fail_untyped=False)
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


def never_implied(kinds: Sequence[Any]) -> bool:
    """Whether all are base classes of which nobody makes objects, so that a class must be named."""
    return all(inspect.isabstract(kind) or kind.__module__.startswith("lightning.") for kind in kinds)


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
    """Names of the imported classes that may stand where one of ``bases`` may."""
    return sorted({kind.__name__ for kind in _subclasses(bases)})


def is_one_of(target: type[Any], bases: Sequence[Any]) -> bool:
    """Whether a class is a subclass of one of ``bases``, or that cannot be told (a Protocol)."""
    try:
        return any(not isinstance(base, type) or issubclass(target, base) for base in bases)
    except TypeError:
        return True


def _subclasses(bases: Sequence[Any]) -> set[Any]:
    """The classes themselves and everything imported below them, without abstract ones."""
    found: set[Any] = set()
    waiting: list[Any] = [base for base in bases if isinstance(base, type)]
    while waiting:
        kind = waiting.pop()
        waiting += [kind_below for kind_below in type.__subclasses__(kind) if kind_below not in found]
        found.add(kind)
    return {kind for kind in found if not inspect.isabstract(kind)}
