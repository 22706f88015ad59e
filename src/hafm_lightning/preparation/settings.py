"""From a YAML file to checked, frozen settings: the one place where the keys of ``prepare.yaml`` meet the code.

Every group of settings is a frozen dataclass beside the code that it steers; :func:`build` fills it from plain values
and names the key, the value and the mend when they do not fit. A misspelt key is an error, never ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hafm_lightning.errors import RequestError
from hafm_lightning.suggestions import did_you_mean, nearest
from hafm_lightning.yaml_keys import Source, key_lines, read_tree, refuse_duplicates, tree_of

T = TypeVar("T")


class SettingError(RequestError):
    """A setting is wrong; ``key`` is its dotted path (or its group's)."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, with ``${...}`` interpolation and ``key=value`` overrides applied.

    Args:
        path: The file.
        overrides: Dotted assignments, ``clips.hop_s=5``; a list element is named by its number.

    Raises:
        RequestError: The file is missing or is not a YAML mapping, sets a key twice, or an override is not an
            assignment.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        refuse_duplicates(read_tree(path), Source(str(path)))
        config = OmegaConf.load(path)
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals or not key:
                raise RequestError(f"{override!r} is not an override; write key=value, for example clips.hop_s=5")
            refuse_duplicates(tree_of(value, of_option(override)), of_option(override))
            # by the loader of the file, for which 1e-3 is a number
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
            OmegaConf.update(config, key.removeprefix("--"), read["value"], merge=True)
        content = OmegaConf.to_container(config, resolve=True)
    except FileNotFoundError:
        raise RequestError(f"configuration {path} does not exist; the shipped ones are in experiments/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration {path} cannot be read: {error}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RequestError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict) or not content:
        raise RequestError(f"{path} holds no settings (a YAML mapping with `root`, `corpora`, ...)")
    return {str(key): value for key, value in content.items()}


def of_option(text: str) -> Source:
    """An override as the place of a mistake."""
    return Source(f"command line: {text}", is_file=False)


@contextlib.contextmanager
def placed(path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Add file and line, or the override, to what is said of a wrong setting.

    Args:
        path: The file that the settings were read from.
        overrides: The ``key=value`` that were applied, the last one last.

    Raises:
        RequestError: In place of a :class:`SettingError`.
    """
    try:
        yield
    except SettingError as error:
        raise RequestError(f"{error}\nwhere: {place_of(error.key, path, overrides)}") from error


def place_of(key: str, path: Path, overrides: Sequence[str]) -> str:
    """Where a key, or the group that is nearest to it, was set last."""
    wanted = tuple(key.split("."))
    for override in reversed(overrides):
        given = tuple(override.partition("=")[0].removeprefix("--").split("."))
        if given[: len(wanted)] == wanted or wanted[: len(given)] == given:
            return of_option(override).name
    lines = dict(key_lines(read_tree(path)))
    nearest_group = next((wanted[:n] for n in range(len(wanted), 0, -1) if wanted[:n] in lines), None)
    return str(path) if nearest_group is None else Source(str(path)).place(lines[nearest_group])


def build(kind: type[T], values: Any, where: str) -> T:
    """Fill a dataclass from plain values.

    Args:
        kind: The dataclass.
        values: Mapping of its fields, as YAML gives them.
        where: Dotted path of this group in the file, for messages.

    Raises:
        RequestError: Unknown or missing keys, wrong types, or values that the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise SettingError(where, f"{where}: expected settings (key: value), got {values!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind)) if field.init}
    for key in values:
        if key not in fields:
            close = nearest(str(key), list(fields))
            hint = did_you_mean(close) if close else f"known keys: {', '.join(fields)}"
            raise SettingError(_join(where, str(key)), f"{_join(where, str(key))}: unknown key; {hint}")
    content = {key: convert(value, hints[key], _join(where, key)) for key, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in content and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingError(where, f"{where or 'settings'}: missing key {', '.join(missing)}")
    try:
        return kind(**content)
    except RequestError:
        raise
    except ValueError as error:
        raise (SettingError(where, f"{where}: {error}") if where else RequestError(str(error))) from error


def convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type that ``hint`` asks for; RequestError where it is none.

    A field that may hold one of several dataclasses takes a mapping whose ``kind`` names the dataclass.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        if len(options) > 1 and all(
            isinstance(option, type) and dataclasses.is_dataclass(option) for option in options
        ):
            return _one_of(value, {option.__name__: option for option in options}, where)
        return convert(value, options[0], where)
    if origin in (list, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise SettingError(where, f"{where}: expected a list, got {value!r}")
        inner = typing.get_args(hint)[0]
        items = [convert(item, inner, f"{where}.{index}") for index, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingError(where, f"{where}: expected key: value pairs, got {value!r}")
        return {str(key): item for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SettingError(where, f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _one_of(value: Any, options: Mapping[str, type[Any]], where: str) -> Any:
    name = str(value.get("kind")) if isinstance(value, Mapping) else "nothing"
    if name not in options:
        close = nearest(name, list(options))
        hint = did_you_mean(close) if close else f"one of {', '.join(options)}"
        raise SettingError(f"{where}.kind", f"{where}.kind: got {name!r}; {hint}")
    rest = {key: item for key, item in value.items() if key != "kind"}
    return build(options[name], rest, where)


def as_plain(settings: Any) -> Any:
    """Dataclasses as mappings (with their ``kind`` where a list may hold several), everything else as it is."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        content = {field.name: as_plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {"kind": type(settings).__name__} | content
    if isinstance(settings, list | tuple):
        return [as_plain(item) for item in settings]
    if isinstance(settings, dict):
        return {key: as_plain(item) for key, item in settings.items()}
    return settings


def describe(kind: type[Any], where: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting of a dataclass and of those inside it: dotted key, default as text, meaning.

    Meanings come from the dataclasses' docstrings. Where one of several kinds may stand, all of them are described.
    """
    hints = typing.get_type_hints(kind)
    meanings = _meanings(kind)
    for field in dataclasses.fields(typing.cast(Any, kind)):
        key, hint = _join(where, field.name), hints[field.name]
        groups = _dataclasses_in(hint)
        if not groups:
            yield key, _default_text(field), meanings[field.name]
            continue
        listed = typing.get_origin(hint) is tuple
        yield key, "", meanings[field.name]
        for group in groups:
            place = f"{key}.N" if listed else key
            if len(groups) > 1:
                yield f"{place}.kind", group.__name__, (group.__doc__ or "").splitlines()[0]
            yield from describe(group, place)


def _dataclasses_in(hint: Any) -> list[type[Any]]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [group for part in typing.get_args(hint) for group in _dataclasses_in(part)]


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "(required)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[]" if value == () else repr(value)


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Field -> its text in the docstring's ``Attributes``."""
    lines = inspect.getdoc(kind) or ""
    texts: dict[str, str] = {}
    name = ""
    for line in lines.partition("Attributes:")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, text = line.strip().partition(":")
            texts[name] = text.strip()
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return texts


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
