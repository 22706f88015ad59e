"""Whether a value is of the type that a key takes, checked by jsonargparse, and the type in words."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import re
import types
import typing
from argparse import ArgumentError
from typing import Any

import yaml
from jsonargparse import ArgumentParser

LONGEST_TYPE = 300
"""Characters of a type in a message; Lightning lists dozens of precisions."""
SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")
"""A number with an exponent, which YAML 1.1 takes for a text where there is no point."""
LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@functools.cache
def _parser_of(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def value_as(value: Any, hint: Any) -> Any:
    """The value as the type of a key, 1 as 1.0 for a float, 1e3 as 1000 for an int; the message of its ValueError is
    the type in words."""
    try:
        return _parser_of(hint).parse_object({"value": value}).value
    except (ArgumentError, TypeError) as error:
        number = whole_number(value)
        if number is not None:
            with contextlib.suppress(ArgumentError, TypeError):
                found = _parser_of(hint).parse_object({"value": number}).value
                if type(found) is int:
                    return found
        raise ValueError(words_of(hint)) from error


def whole_number(value: Any) -> int | None:
    """The int that a float, or a text such as ``1e3``, stands for; None for any other value."""
    if isinstance(value, str) and SCIENTIFIC.fullmatch(value.strip()):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def plain_value(node: yaml.Node) -> Any:
    """The value of a YAML node, as a file's loader gives it."""
    return yaml.safe_load(yaml.serialize(node, Dumper=yaml.SafeDumper))


def takes_null(hint: Any) -> bool:
    """Whether ``null`` is one of a type's values."""
    return hint in (Any, None, type(None)) or any(takes_null(part) for part in _alternatives(hint))


def words_of(hint: Any) -> str:
    """A type as a message names it: ``int``, ``a list of str``, ``one of 'a', 'b'``, ``float or null``."""
    alternatives = _alternatives(hint)
    if alternatives:
        return " or ".join(dict.fromkeys(map(words_of, alternatives)))[:LONGEST_TYPE]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return words_of(inner[0])
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if (origin or hint) in LISTS:
        return f"a list of {words_of(inner[0])}" if inner else "a list"
    if (origin or hint) in MAPPINGS:
        return "key: value pairs"
    return "null" if hint in (None, type(None)) else getattr(hint, "__name__", str(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
