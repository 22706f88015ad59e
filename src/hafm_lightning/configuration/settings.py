"""Settings of a command as a frozen dataclass: from YAML files and options, as ``fit`` reads its configuration.

Every group of settings is a dataclass beside the code that it controls; its docstring is the text of ``--help``. Where
several dataclasses are allowed, the key ``kind`` names one. Later files and options win; ``${key}`` is resolved after
the last of them.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hafm_lightning.configuration.keys import KIND, KeyCheck, kind_of, unknown_key, wrong_value
from hafm_lightning.configuration.origins import (
    SHIPPED_CONFIGURATIONS,
    KeyPath,
    Option,
    Origins,
    options_of,
    without_spec,
)
from hafm_lightning.configuration.signatures import any_of, choices_of, kinds_of
from hafm_lightning.configuration.values import takes_null, value_as, words_of
from hafm_lightning.errors import RequestError

T = TypeVar("T")
HELP, PRINT_CONFIG = ("-h", "--help"), "--print_config"
ROLE = re.compile(r":\w+:`~?([\w.]+)`")
"""A reference in a docstring, which ``--help`` shows as plain text."""


def parse_settings(kind: type[T], arguments: Sequence[str], program: str, description: str) -> T:
    """The dataclass ``kind`` from a command line: ``--config FILE``, ``--key value``, ``--key=value``, ``key=value``.

    Raises:
        RequestError: A setting is wrong, with its key, its place and what to do.
        SystemExit: After ``--help``, which shows ``program`` and ``description``, or ``--print_config``.
    """
    if set(HELP) & set(arguments):
        print(explain(kind, program, description))
        raise SystemExit(0)
    wanted = [argument for argument in arguments if argument != PRINT_CONFIG]
    settings = read_settings(kind, wanted)
    if len(wanted) < len(arguments):
        print(yaml.safe_dump(as_plain(settings, all_kinds=False), sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return settings


def read_settings(kind: type[T], arguments: Sequence[str]) -> T:
    """The settings that files and options give; see :func:`parse_settings`."""
    options = options_of(arguments)
    origins = Origins(options)
    KeyCheck(typing.get_type_hints(kind), ["--config"], numbered=True).options(options)
    if not origins.files:
        raise RequestError(f"no configuration\nname one with --config; {SHIPPED_CONFIGURATIONS}")
    try:
        values = _merged(options)
    except yaml.YAMLError as error:
        raise RequestError(f"{' '.join(str(error).split())[:300]}\nwhere: {origins.of(())}") from error
    except OmegaConfBaseException as error:
        raise interpolation_error(error, origins) from error
    texts = {option.path: option.value or "" for option in options if option.file is None}
    return build(kind, values, origins.of, texts)


def interpolation_error(error: OmegaConfBaseException, origins: Origins, command: str = "settings") -> RequestError:
    """A ``${...}`` that names no key, as a wrong request; LightningCLI keeps the configuration below ``command``."""
    key = re.sub(r"\[(\d+)\]", r".\1", str(getattr(error, "full_key", "") or "")).removeprefix(f"{command}.")
    path = without_spec(key.split("."))
    unset = re.search(r"Environment variable '(\w+)' not found", str(error))
    if unset is not None:
        name = unset[1]
        return RequestError(
            f"{'.'.join(path) or 'configuration'}: the environment variable {name} is not set\n"
            f"where: {origins.of(path)}\nset it ({name}=... before the command), or give the key itself a value"
        )
    # LightningCLI makes paths relative: '..model.width' and, below its section, 'fit.model.width'
    reason = re.sub(rf"(?<=')(\.+|{command}\.)| \(resolved to .*?\)", "", str(error).splitlines()[0])
    return RequestError(
        f"{'.'.join(path) or 'configuration'}: {reason}\nwhere: {origins.of(path)}\n"
        "${...} takes the full path of a key, or ${oc.env:NAME} for an environment variable"
    )


def _merged(options: Sequence[Option]) -> dict[str, Any]:
    """Files and options as one tree of plain values."""
    config = DictConfig({})
    for option in options:
        if option.file is not None:
            config = typing.cast(DictConfig, OmegaConf.merge(config, OmegaConf.load(option.file)))
            continue
        key = ".".join(option.path)
        # by the loader of the files: 1e-3 is a number
        content = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={option.value}"]))["value"]  # type: ignore
        if option.name.endswith("+"):
            before = OmegaConf.select(config, key, default=[])
            content = [*before, *(content if isinstance(content, list) else [content])]
        OmegaConf.update(config, key, content, merge=not option.name.endswith("+"))
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def build(
    kind: type[T],
    values: Any,
    origin: Callable[[KeyPath], str] = lambda path: "",
    texts: Mapping[KeyPath, str] | None = None,
) -> T:
    """Make a dataclass of a mapping of plain values.

    Args:
        kind: The dataclass.
        values: The mapping.
        origin: Gives the place of a key, for messages.
        texts: Path of a key -> its text on the command line, for texts that look like numbers.

    Raises:
        RequestError: Unknown or missing keys, values of another type, or values that the dataclass refuses.
    """
    return typing.cast(T, _Builder(origin, texts or {}).group(kind, values, ()))


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Makes dataclasses one inside the other; the parser's own way loses the key at which one of them refuses."""

    origin: Callable[[KeyPath], str]
    texts: Mapping[KeyPath, str]

    def group(self, kind: type[Any], values: Any, path: KeyPath) -> Any:
        """A dataclass."""
        if not isinstance(values, Mapping):
            raise wrong_value(path, "settings (key: value)", values, self.origin(path))
        hints, fields = typing.get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
        for key in values:
            if key not in fields:
                raise unknown_key((*path, str(key)), self.origin((*path, str(key))), hints)
        required = [name for name, field in fields.items() if field.default is field.default_factory is MISSING]
        missing = [".".join((*path, name)) for name in required if name not in values]
        if missing:
            raise RequestError(f"missing key {', '.join(missing)}\nwhere: {self.origin(path)}")
        content = {key: self.value(value, hints[key], (*path, key)) for key, value in values.items()}
        try:
            return kind(**content)
        except RequestError:
            raise
        except ValueError as error:
            named = str(error).split(":")[0].split(" ")[0]  # most begin with the field's name
            where = self.origin((*path, named) if named in fields else path)
            section = f"{'.'.join(path)}: " if path else ""
            raise RequestError(f"{section}{error}\nwhere: {where}") from error

    def value(self, value: Any, hint: Any, path: KeyPath) -> Any:
        """What a field takes: a dataclass, a list, or a plain value."""
        kinds, choices = kinds_of(hint), choices_of(hint)
        if choices and value is not None:
            keys = value if isinstance(value, Mapping) else {}
            target = kind_of(keys.get(KIND), choices, path, self.origin((*path, KIND)))
            # where a later file or option has chosen another kind, the keys of the earlier one are left over
            left_over = {KIND}.union(*map(typing.get_type_hints, choices.values())) - set(typing.get_type_hints(target))
            return self.group(target, {key: item for key, item in keys.items() if key not in left_over}, path)
        if kinds.classes and not (value is None and takes_null(hint)):
            return self.group(kinds.classes[0], value, path)
        if kinds.elements and isinstance(value, list | tuple):
            inner = any_of(kinds.elements)
            items = [self.value(item, inner, (*path, str(place))) for place, item in enumerate(value)]
            return tuple(items) if typing.get_origin(hint) is tuple else items
        if value is None and hint is str and self.texts.get(path) == "":
            return ""  # `shards=` and `--fine ""`: a text of no letters, which YAML reads as null
        if value is None and not takes_null(hint):
            raise wrong_value(path, words_of(hint), value, self.origin(path))
        try:
            return value_as(value, hint)
        except ValueError as error:
            text = self.texts.get(path)
            if hint is str and text is not None and yaml.safe_load(text) == value:
                return text
            raise wrong_value(path, str(error), value, self.origin(path)) from error


def as_plain(settings: Any, all_kinds: bool = True) -> Any:
    """Dataclasses as mappings, lists and plain values, with the name of each class under ``kind``.

    Without ``all_kinds`` only where a configuration needs the name.
    """

    def plain(value: Any, named: bool) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            hints = typing.get_type_hints(type(value))
            content = {
                field.name: plain(getattr(value, field.name), all_kinds or _has_choices(hints[field.name]))
                for field in dataclasses.fields(value)
            }
            return ({KIND: type(value).__name__} if named else {}) | content
        if isinstance(value, list | tuple):
            return [plain(item, named) for item in value]
        return {key: plain(item, named) for key, item in value.items()} if isinstance(value, dict) else value

    return plain(settings, all_kinds)


def _has_choices(hint: Any) -> bool:
    return bool(choices_of(hint)) or any(map(_has_choices, kinds_of(hint).elements))


def parser_for(kind: type[Any], program: str, description: str) -> ArgumentParser:
    """A parser with an option for every setting, for help and completion; :func:`parse_settings` parses."""
    parser = ArgumentParser(prog=program, description=description, usage=f"{program} --config FILE [--KEY VALUE ...]")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; may be repeated, the last one wins")
    parser.add_argument(PRINT_CONFIG, action="store_true", help="print the settings that a run would have, and stop")
    parser.add_class_arguments(kind, as_group=False)
    for action in parser._actions:
        # a file for one section, the help of one class
        if action.metavar in ("CONFIG", "CLASS_PATH_OR_NAME") or action.option_strings[0].endswith(".help"):
            action.help = SUPPRESS
    return parser


def explain(kind: type[Any], program: str, description: str) -> str:
    """The help of a command: type, default and meaning of every setting, and the dataclasses that ``kind`` can name."""
    pages = [parser_for(kind, program, description).format_help()]
    for title, target in _pages_of(kind, ()):
        page = ArgumentParser(prog=program, usage="", add_help=False)
        page.add_class_arguments(target, nested_key=None)
        keys = page.format_help().partition("\n\n")[2].replace("  --", "  ")
        pages.append("\n".join([title, keys or f"{str(target.__doc__).splitlines()[0]}\n"]))
    return ROLE.sub(r"\1", "\n".join(pages)).rstrip()


def _pages_of(kind: type[Any], path: KeyPath) -> Iterator[tuple[str, type[Any]]]:
    """Title and class of every value of a key ``kind`` and of the elements of lists, in a dataclass and inside it."""
    for name, hint in typing.get_type_hints(kind).items():
        dotted = ".".join((*path, name))
        elements = kinds_of(hint).elements
        for element in (hint, *elements):
            choices = choices_of(element)
            yield from ((f"{dotted} with kind: {choice}", target) for choice, target in choices.items())
            for inner in () if choices else kinds_of(element).classes:
                if element in elements:
                    yield f"each element of {dotted}", inner
                yield from _pages_of(inner, (*path, name))
