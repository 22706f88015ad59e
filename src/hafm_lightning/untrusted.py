"""Reading what others wrote: JSON with limits and schemas, names that become paths, files that are files.

Whatever lies in a file, a reader ends with its content or with one :class:`RequestError` of one line. Limits are those
of :mod:`hafm_lightning.limits`.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
import math
import os
import re
import stat
import unicodedata
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar, cast

from hafm_lightning import limits
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["T", "check_file", "checked", "child", "file_stem", "open_file", "parse_json", "read_json"]

T = TypeVar("T")

# Both alternatives of each group succeed at the end of the text too, so that no match fails and the scan is linear.
_STRINGS = re.compile(r'"[^"\\]*(?:\\(?:.|\Z)[^"\\]*)*(?:"|\Z)', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Bytes of file names that are not UTF-8 are surrogates in Python, which pydantic does not take.
_SURROGATES = re.compile("[\ud800-\udfff]")
_STAND_IN = 0x10_0000


def open_file(path: str | Path, *, what: str, advice: str, most_bytes: float = math.inf) -> IO[bytes]:
    """A regular file, open for reading; a pipe, a device or a folder is refused instead of waited for.

    ``what`` the file is and the ``advice`` appear in messages. RequestError if it is missing, may not be read, is no
    regular file, or has more than ``most_bytes``.
    """
    subject = f"{_shown(path)}: {what}{' ' * bool(what)}"
    try:
        # Without O_NONBLOCK, opening a pipe waits until another process writes to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise RequestError(f"{subject}cannot be read (no such file); {advice}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, PermissionError) and Path(path).is_dir():  # Windows opens no folders
            raise RequestError(f"{subject}is a folder, not a file; {advice}") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{subject}cannot be read ({reason}); {advice}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
            raise RequestError(f"{subject}is {kind}, not a file; {advice}")
        if status.st_size > most_bytes:
            raise RequestError(f"{subject}has {status.st_size} bytes, at most {most_bytes:.0f} are read; {advice}")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_file(path: str | Path, *, what: str, advice: str, most_bytes: float = math.inf) -> int:
    """Size in bytes of a regular file that can be read; errors as :func:`open_file`."""
    with open_file(path, what=what, advice=advice, most_bytes=most_bytes) as file:
        return os.fstat(file.fileno()).st_size


def read_json(path: str | Path, *, what: str, advice: str) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        what: What the file is, for messages: ``"the manifest"``.
        advice: What to do when it cannot be read, for messages: ``"prepare the shards again"``.

    Raises:
        RequestError: In one line: missing, no regular file, not allowed, or refused by :func:`parse_json`.
    """
    most = limits.current().json_bytes
    with open_file(path, what=what, advice=advice, most_bytes=most) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise RequestError(f"{_shown(path)}: {what} cannot be read ({error.strerror}); {advice}") from error
    return parse_json(content, _shown(path), advice=advice)


def parse_json(text: bytes | str, where: object, *, advice: str) -> Any:
    """The value of a JSON text in UTF-8 (a byte-order mark is allowed), within the limits.

    Also refused: NaN, infinities, numbers beyond the range of floats, and repeated keys, of which readers take either.

    Raises:
        RequestError: In one line that begins with ``where``.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        _check_size(decoded, len(text))
        return json.loads(decoded, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RequestError(f"{where} is damaged ({reason:.160}); {advice}") from error


def _check_size(text: str, size: int) -> None:
    """ValueError beyond a limit; nothing is parsed yet, so that memory stays bounded and nothing recurses."""
    most = limits.current()
    if size > most.json_bytes:
        raise ValueError(f"{size} bytes, at most {most.json_bytes} are read")
    rest = _STRINGS.sub("", text)
    if re.search(rf"[-+.0-9eE]{{{most.json_digits + 1}}}", rest):
        raise ValueError(f"a number of more than {most.json_digits} characters")
    items = sum(map(rest.count, ",[{"))
    if items > most.json_items:
        raise ValueError(f"{items} values, at most {most.json_items} are read")
    depth = max(itertools.accumulate(map(_STEP.__getitem__, _NO_BRACKETS.sub("", rest))), default=0)
    if depth > most.json_depth:
        raise ValueError(f"{depth} lists or objects inside one another, at most {most.json_depth} are read")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        repeated = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repeated!r:.60} occurs twice")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text:.30} is too large")
    return value


def checked(
    content: Any,
    schema: type[T],
    where: object,
    advice: str,
    *,
    unknown: Literal["forbid", "ignore"] = "forbid",
) -> T:
    """A dataclass, TypedDict or other type built from JSON values, of exactly the annotated types.

    Strict: ``"5"``, ``5.0`` and ``true`` are no integers; an integer is a float; a list may become a tuple. Errors that
    a dataclass raises in ``__post_init__`` (ValueError) are reported in the same way.

    Args:
        content: Values as :func:`parse_json` returns them.
        schema: The type. It must be at the top level of a module.
        where: The file or address, for messages.
        advice: What to do about a damaged file, for messages.
        unknown: Whether fields that the schema does not have are refused or left out.

    Raises:
        RequestError: In one line: the path of the first wrong field, the expected type, and the value.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # values from elsewhere than a JSON text
        raise RequestError(f"{where} is damaged ({error!s:.160}); {advice}") from error
    odd_names = _SURROGATES.search(text) is not None
    if odd_names:
        text = _SURROGATES.sub(lambda found: chr(ord(found[0]) + _STAND_IN), text)
    try:
        adapter: TypeAdapter[T] = _adapter(cast(Any, schema))
        value = adapter.validate_json(text, strict=True, extra=unknown)
    except ValidationError as error:
        raise RequestError(f"{where} is damaged ({_first_of(error.errors(include_url=False))}); {advice}") from error
    restored: T = _restored(value) if odd_names else value
    return restored


@functools.lru_cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _first_of(errors: list[Any]) -> str:
    first = errors[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown(part):.60}" for part in first["loc"])
    text = str(first["msg"]).replace("Input should be", "must be").removeprefix("Value error, ")
    text = text.replace("Field required", "is missing").replace("Unexpected keyword argument", "is unknown")
    wanted = " ".join(text.replace("Extra inputs are not permitted", "is unknown").split())
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r:.40}"
    more = f"; {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{place.lstrip('.') or 'content'}: {wanted:.160}{got}{more}"


def _restored(value: Any) -> Any:
    """The value with its surrogates back."""
    if isinstance(value, str):
        return "".join(
            chr(ord(char) - _STAND_IN) if 0xD800 <= ord(char) - _STAND_IN <= 0xDFFF else char for char in value
        )
    if isinstance(value, dict):
        return {_restored(key): _restored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_restored, value))
    if is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            object.__setattr__(value, item.name, _restored(getattr(value, item.name)))
    return value


def child(folder: str | Path, name: str, what: str) -> Path:
    """The path of the entry called ``name`` in ``folder``.

    This is the one place where a name from a file, a folder, an upload or the network becomes a path. ``what`` has the
    name, for messages.

    Raises:
        RequestError: The name is empty or too long, leads elsewhere (separators, drive letters, dots alone) or holds
            control characters.
    """
    reason = _name_problem(name)
    if reason:
        raise RequestError(f"{what} has the name {name!r:.80}: {reason}; use the name of a file in {_shown(folder)}")
    return Path(folder) / name


def _name_problem(name: object) -> str:
    if not isinstance(name, str) or not name:
        return "it is empty" if name == "" else "it is no text"
    if "/" in name or "\\" in name:
        return "it is a path, not a name"
    if not name.strip(". "):
        return "it consists of dots or spaces"
    if _DRIVE.match(name):
        return "it begins with a drive letter"
    if any(unicodedata.category(char) == "Cc" for char in name):
        return "it holds control characters"
    if os.name == "nt" and _DEVICES.fullmatch(name):
        return "it is the name of a device"
    size = _bytes(name)
    most = limits.current().name_bytes
    return f"it has {size} bytes, at most {most} are allowed" if size > most else ""


def file_stem(name: str) -> str:
    """A safe name for a folder or a file, made from a file name from outside: the name without its last suffix.

    Names that are safe already stay as they are; ``...wav`` becomes ``__``. Different names in one folder become
    different ones, apart from their suffixes and characters that cannot be in a name.
    """
    last = re.split(r"[/\\]", name)[-1]
    stem = last.rpartition(".")[0] or last
    stem = "".join("_" if unicodedata.category(char) == "Cc" else char for char in stem)
    stem = _DRIVE.sub(lambda found: f"{found[0][0]}_", stem, count=1) if _DRIVE.match(stem) else stem
    if not stem.strip(". "):
        stem = "_" * max(1, len(stem))
    if os.name == "nt" and _DEVICES.fullmatch(stem):
        stem = f"_{stem}"
    # Room for suffixes that the caller adds.
    return _shortened(stem, limits.current().name_bytes - 32)


def _shortened(stem: str, most_bytes: int) -> str:
    if _bytes(stem) <= most_bytes:
        return stem
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    while _bytes(stem) > most_bytes - 9:
        stem = stem[:-1]
    return f"{stem}-{digest}"


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))


def _shown(name: object) -> str:
    """A name in a message of one line."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in str(name))
