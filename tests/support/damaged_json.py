"""Damaged versions of a JSON file: every field with values of wrong types, and texts that are no JSON at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hafm_lightning.errors import RequestError

_MARK = '"@@ the value stands here @@"'

WRONG_VALUES = {
    "null": "null",
    "true": "true",
    "list": "[]",
    "object": "{}",
    "nested": "[" * 300 + "]" * 300,
    "huge integer": "9" * 5000,
    "large integer": "9" * 30,
    "large float": "1e308",
    "infinite": "1e999",
    "negative": "-1",
    "zero": "0",
    "empty": '""',
    "NaN": "NaN",
    "path": '"../../../x"',
    "control": '"a\\u0000b\\nc"',
    "surrogate": '"\\ud800"',
}
"""Name -> the JSON text that takes a field's place."""

NOT_JSON = frozenset({"nested", "huge integer", "infinite", "NaN"})
"""Wrong values that no reader may take, in any field."""


@dataclass(frozen=True)
class Damage:
    """One damaged text.

    Attributes:
        name: Place and kind, as the id of a test.
        text: The bytes of the file.
        is_certain: No reader may take it; the others depend on the field (``""`` may be a note).
    """

    name: str
    text: bytes
    is_certain: bool


def damaged_texts(content: Any) -> Iterator[Damage]:
    """Texts that are damaged as a whole, from a valid ``content``."""
    text = json.dumps(content).encode()
    for share in (0.1, 0.5, 0.9):
        yield Damage(f"truncated at {share:.0%}", text[: int(len(text) * share)], True)
    yield Damage("without its end", text[:-1], True)
    yield Damage("empty", b"", True)
    yield Damage("zero bytes", bytes(len(text)), True)
    yield Damage("zero bytes at the end", text[:-8] + bytes(8), True)
    yield Damage("not UTF-8", text.replace(b'"', b'"\xff', 1), True)
    yield Damage("UTF-16", text.decode().encode("utf-16"), True)
    yield Damage("nested 100,000 deep", b"[" * 100_000 + b"]" * 100_000, True)
    yield Damage("nested objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, True)
    yield Damage("unclosed", b"[" * 100_000, True)
    yield Damage("escapes", b'"' + b'\\"' * 100_000, True)
    for name, value in {"null": "null", "list": "[]", "object": "{}", "text": '"x"', "number": "1"}.items():
        yield Damage(f"only {name}", value.encode(), name != "object")
    yield Damage("two values", text + text, True)
    if isinstance(content, dict) and content:
        key = next(iter(content))
        twice = f"{{{json.dumps(key)}: {json.dumps(content[key])}, ".encode() + text[1:]
        yield Damage("repeated key", twice, True)


def damaged_fields(content: Any, longest_list: int = 1) -> Iterator[Damage]:
    """``content`` with each field, one at a time, missing, unknown or replaced by each of :data:`WRONG_VALUES`.

    Of lists, the first ``longest_list`` items are damaged.
    """
    for place in _places(content, longest_list):
        name = ".".join(map(str, place))
        if isinstance(place[-1], str):
            yield Damage(f"{name} missing", json.dumps(_without(content, place)).encode(), False)
        marked = json.dumps(_replaced(content, place, json.loads(_MARK)))
        for kind, value in WRONG_VALUES.items():
            yield Damage(f"{name} {kind}", marked.replace(_MARK, value, 1).encode(), kind in NOT_JSON)


def damaged(content: Any, longest_list: int = 1) -> Iterator[Damage]:
    """All of :func:`damaged_texts` and :func:`damaged_fields`."""
    yield from damaged_texts(content)
    yield from damaged_fields(content, longest_list)


def survivors(content: Any, read: Callable[[bytes], Any]) -> list[str]:
    """Names of the damages after which ``read`` still takes the text; any other must end in a short RequestError."""
    taken = []
    for damage in damaged(content):
        try:
            read(damage.text)
        except RequestError as refusal:
            lines = str(refusal).splitlines()
            if len(lines) > 5 or not all(line.isprintable() and len(line) < 1000 for line in lines):
                raise AssertionError(f"{damage.name}: the message is no short one: {lines!r:.500}") from refusal
        except Exception as error:
            raise AssertionError(f"{damage.name}: {type(error).__name__} instead of a RequestError") from error
        else:
            taken.append(damage.name)
            if damage.is_certain:
                raise AssertionError(f"{damage.name}: taken")
    return taken


def _places(content: Any, longest_list: int, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items: Any = []
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = list(enumerate(content))[:longest_list]
    for key, item in items:
        yield (*place, key)
        yield from _places(item, longest_list, (*place, key))


def _replaced(content: Any, place: tuple[str | int, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[place[0]] = _replaced(content[place[0]], place[1:], value)  # type: ignore[index]
    return copy


def _without(content: Any, place: tuple[str | int, ...]) -> Any:
    copy = dict(content) if isinstance(content, dict) else list(content)
    if len(place) == 1:
        del copy[place[0]]  # type: ignore[arg-type]
    else:
        copy[place[0]] = _without(content[place[0]], place[1:])  # type: ignore[index]
    return copy
