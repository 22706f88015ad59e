"""Ways of damaging a file, made systematically: every field of a JSON or YAML file, and the bytes of any file."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

Apply = Callable[[Path], None]
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Damage:
    """One damage: ``apply`` changes the file at a path.

    Attributes:
        name: Unique among the damages of a file.
        apply: Does it.
        words: A line that holds one of them, beside the file's name, says what differs.
        refused: The command must not succeed.
    """

    name: str
    apply: Apply
    words: tuple[str, ...] = ()
    refused: bool = False


# Python value, or JSON text for what Python's writer would not write.
JSON_TEXTS: dict[str, str] = {
    "null": "null",
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "a fraction": "0.5",
    "a large number": "1000000000000000",
    "too large for a float": "1e999",
    "NaN": "NaN",
    "4000 digits": "9" * 4000,
    "5000 digits": "9" * 5000,
    "no text": '""',
    "another text": '"something else"',
    "a line break": '"two\\nlines\\u0000"',
    "a lone surrogate": '"\\ud800"',
    "a path upwards": '"../../escaped"',
    "a long text": '"' + "x" * 5000 + '"',
    "no list": "[]",
    "a list": "[1, null]",
    "no object": "{}",
    "deep nesting": "[" * 3000 + "]" * 3000,
    "very deep nesting": "[" * 100_000 + "]" * 100_000,
}
YAML_VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "a fraction": 0.5,
    "a large number": 10**15,
    "infinity": float("inf"),
    "NaN": float("nan"),
    "400 digits": 10**400,
    "no text": "",
    "another text": "something else",
    "a line break": "two\nlines",
    "a path upwards": "../../escaped",
    "no list": [],
    "a list": [1, None],
    "no mapping": {},
    "a mapping": {"some": {"key": 1}},
}


def paths_of(content: Any, most_items: int = 2) -> Iterator[Keys]:
    """The place of every value in nested mappings and lists; of a list the first ``most_items``."""
    if isinstance(content, dict):
        for key, value in list(content.items()):
            yield (key,)
            yield from ((key, *rest) for rest in paths_of(value, most_items))
    elif isinstance(content, list):
        for index, value in enumerate(content[:most_items]):
            yield (index,)
            yield from ((index, *rest) for rest in paths_of(value, most_items))


def at(content: Any, keys: Keys) -> Any:
    """What is at a place."""
    for key in keys:
        content = content[key]
    return content


def place(content: Any, keys: Keys, value: Any) -> None:
    """Put ``value`` at a place."""
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


def without(content: Any, keys: Keys) -> None:
    """Remove what is at a place."""
    for key in keys[:-1]:
        content = content[key]
    del content[keys[-1]]


def dotted(keys: Keys) -> str:
    """A place as text."""
    return ".".join(map(str, keys))


def json_fields(path: Path) -> Iterator[Damage]:
    """Every field of a JSON file: with each wrong value, left out, and given twice; then the whole file."""
    content = json.loads(path.read_bytes())
    for keys in paths_of(content):
        words, present = (str(keys[-1]),), json.dumps(at(content, keys))
        for title, text in JSON_TEXTS.items():
            if text == present:
                continue
            yield Damage(f"{dotted(keys)} = {title}", partial(_json_text, keys, text), words)
        yield Damage(f"{dotted(keys)} left out", partial(_json_removed, keys), words)
    for title, text in JSON_TEXTS.items():
        yield Damage(f"the whole file is {title}", partial(_written, text.encode()))
    yield Damage("an unknown field", _json_added)
    yield Damage("UTF-16", lambda file: file.write_bytes(file.read_bytes().decode().encode("utf-16")))


_MARK = "\ue000the value\ue000"


def _json_text(keys: Keys, text: str, path: Path) -> None:
    content = json.loads(path.read_bytes())
    place(content, keys, _MARK)
    path.write_text(json.dumps(content).replace(json.dumps(_MARK), text))


def _json_removed(keys: Keys, path: Path) -> None:
    content = json.loads(path.read_bytes())
    without(content, keys)
    path.write_text(json.dumps(content))


def _json_added(path: Path) -> None:
    content = json.loads(path.read_bytes())
    if isinstance(content, dict):
        content["unexpected"] = {"field": 1}
    path.write_text(json.dumps(content))


def _written(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def yaml_fields(path: Path) -> Iterator[Damage]:
    """Every key of a YAML file: with each wrong value, left out, misspelt; then the whole file."""
    content = yaml.safe_load(path.read_text())
    for keys in paths_of(content):
        for title, value in YAML_VALUES.items():
            if repr(value) == repr(at(content, keys)):
                continue
            yield Damage(f"{dotted(keys)} = {title}", partial(_yaml_value, keys, value))
        yield Damage(f"{dotted(keys)} left out", partial(_yaml_removed, keys))
        if isinstance(keys[-1], str):
            yield Damage(f"{dotted(keys)} misspelt", partial(_yaml_misspelt, keys), refused=True)
    whole = {
        "a list": "- 1\n",
        "a number": "12\n",
        "a tab": "\tkey: 1\n",
        "an object of Python": "!!python/object/apply:os.system ['touch ../canary']\n",
        "an alias to itself": "key: &a [*a]\n",
        "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "deep nesting": "[" * 2000 + "]" * 2000,
        "a key of a mapping": "? {a: 1}\n: 2\n",
        "bytes": "\x00\x01",
    }
    for title, text in whole.items():
        yield Damage(f"the whole file is {title}", partial(_written, text.encode()), refused=True)


def _yaml_value(keys: Keys, value: Any, path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    place(content, keys, value)
    path.write_text(yaml.safe_dump(content))


def _yaml_removed(keys: Keys, path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    without(content, keys)
    path.write_text(yaml.safe_dump(content))


def _yaml_misspelt(keys: Keys, path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[f"{keys[-1]}x"] = inner.pop(keys[-1])
    path.write_text(yaml.safe_dump(content))


def bytes_of_file(path: Path, flips: int = 6, seed: int = 0) -> Iterator[Damage]:
    """Cut short, emptied, zeroed, single bits turned at seeded places, something else under the name."""
    size = path.stat().st_size
    generator = random.Random(f"{path.name} {seed}")
    for title, length in {"empty": 0, "one byte": 1, "half": size // 2, "all but a byte": size - 1}.items():
        yield Damage(f"cut to {title}", partial(_cut, length))
    for offset in sorted(generator.sample(range(size), min(flips, size))):
        bit = generator.randrange(8)
        yield Damage(f"bit {bit} of byte {offset} turned", partial(_flipped, offset, bit))
    begin = generator.randrange(max(size - 64, 1))
    yield Damage(f"64 bytes from {begin} are zero", partial(_zeroed, begin))
    yield Damage("a byte more", lambda file: _written(file.read_bytes() + b"\x07", file))
    yield Damage("only zeros", lambda file: _written(bytes(file.stat().st_size), file))
    yield Damage("a text", partial(_written, b"version https://git-lfs.github.com/spec/v1\n"))
    yield Damage("missing", Path.unlink)
    yield Damage("a folder", partial(_instead, Path.mkdir))
    yield Damage("a pipe", partial(_instead, os.mkfifo))
    yield Damage("a link to itself", partial(_instead, lambda file: file.symlink_to(file.name)))
    yield Damage("a link to nowhere", partial(_instead, lambda file: file.symlink_to("nowhere")))
    yield Damage("/dev/zero", partial(_instead, lambda file: file.symlink_to("/dev/zero")))


def _cut(length: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _flipped(offset: int, bit: int, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(bytes(content))


def _zeroed(begin: int, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:begin] + bytes(len(content[begin : begin + 64])) + content[begin + 64 :])


def _instead(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


def swapped(path: Path, other: Path) -> None:
    """Exchange two files."""
    aside = path.with_name("aside")
    path.rename(aside)
    shutil.move(other, path)
    aside.rename(other)
