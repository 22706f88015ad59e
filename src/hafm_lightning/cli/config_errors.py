"""Configuration mistakes, told in a few lines: what is wrong, in which file and line, and what was probably meant.

LightningCLI's parser is right about what is wrong, but says so under ninety lines of usage, without the file. Here its
one-sentence messages are taken apart, the offending key is looked up in the YAML files and on the command line, and
the keys that would have been accepted in its place are read from the classes' signatures.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from hafm_lightning.errors import RequestError

UNKNOWN_KEY = re.compile(
    r"(?:Option|Key) ['\"](?P<a>[^'\"]+)['\"] is not (?:accepted|expected)"
    r"|does not accept (?:option|nested key) ['\"](?P<b>[^'\"]+)['\"]"
    r"|No action for key ['\"](?P<c>[^'\"]+)['\"]"
)
UNKNOWN_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: (?P<arguments>.+)")
WRONG_VALUE = re.compile(r"Parser key ['\"](?P<key>[^'\"]+)['\"]:?\s*(?P<detail>.*)", re.DOTALL)
EXPECTED = re.compile(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>[^\n]*)")
CLASS_PATH = re.compile(r"Problem with given class_path ['\"](?P<path>[^'\"]+)['\"]:\s*(?P<reason>[^\n]*)")
NOT_A_KEY = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Place:
    """Where a key stands: its dotted path, and ``file, line n`` or the command line."""

    path: tuple[str, ...]
    where: str


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files named by ``--config`` (or ``-c``), in order."""
    files = []
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-c"):
            files += [Path(value)] if value else [Path(a) for a in arguments[place + 1 : place + 2]]
    return files


def check_file(file: Path) -> None:
    """Raise RequestError unless a configuration file is there and holds settings (of broken YAML the parser tells)."""
    if not file.is_file():
        raise RequestError(f"configuration file {file} does not exist\nthe shipped ones are in experiments/")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration file {file} cannot be read ({error})\nit must be YAML text") from error
    except yaml.YAMLError:
        return
    if not isinstance(content, dict):
        raise RequestError(
            f"configuration file {file} holds no settings (a YAML mapping with `model`, `data`, `trainer`)\n"
            "the shipped ones are in experiments/"
        )


def yaml_keys(path: Path) -> Iterator[Place]:
    """Every key of a YAML file with its dotted path and line; nothing if the file is not YAML."""

    def walk(node: yaml.Node | None, above: tuple[str, ...]) -> Iterator[Place]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*above, str(key.value))
                yield Place(here, f"{path}, line {key.start_mark.line + 1}")
                yield from walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                yield from walk(value, (*above, str(number)))

    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return
    yield from walk(tree, ())


def places_of(key: str, arguments: Sequence[str]) -> list[Place]:
    """Where a key that the parser named occurs; it may have left out the beginning of the path."""
    parts = tuple(part for part in key.split(".") if part not in NOT_A_KEY)
    found = []
    for argument in arguments:
        name = argument.partition("=")[0]
        path = tuple(name.removeprefix("--").split("."))
        if name.startswith("--") and path[-len(parts) :] == parts:
            found.append(Place(path, f"command line: {name}"))
    for file in config_files(arguments):
        for place in yaml_keys(file):
            plain = tuple(part for part in place.path if part not in NOT_A_KEY)
            if plain[-len(parts) :] == parts:
                found.append(place)
    return found


def load_class(class_path: object) -> Any:
    """The class or function behind a dotted path, or None."""
    module, _, name = str(class_path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def parameters_of(target: Any) -> dict[str, Any]:
    """Names and types of what a class takes, its parents' included where it passes them on by ``**kwargs``."""
    names: dict[str, Any] = {}
    for kind in inspect.getmro(target) if isinstance(target, type) else (target,):
        init = kind.__dict__.get("__init__") if isinstance(kind, type) else kind
        if init is None:
            continue
        try:
            hints = typing.get_type_hints(init)
        except (NameError, TypeError):
            hints = {}
        parameters = [p for p in inspect.signature(init).parameters.values() if p.name != "self"]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                names.setdefault(parameter.name, hints.get(parameter.name))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def accepted_keys(path: tuple[str, ...], top_level: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The keys that the configuration accepts beside the last part of ``path``; empty where unknown."""
    above = [part for part in path[:-1] if part not in NOT_A_KEY]
    if not above:
        return list(top_level)
    kind: Any = Trainer if above[0] == "trainer" else None
    rest = above[1:]
    classes = class_paths(arguments)
    for depth in range(len(path) - 1, 0, -1):  # the nearest class_path above the key
        prefix = tuple(part for part in path[:depth] if part not in NOT_A_KEY)
        if prefix in classes:
            kind, rest = load_class(classes[prefix]), above[len(prefix) :]
            break
    for part in rest:
        if kind is None:
            return []
        kind = parameters_of(kind).get(part)
        kinds = [k for k in (typing.get_args(kind) or (kind,)) if dataclasses.is_dataclass(k)]
        kind = kinds[0] if kinds else None
    return list(parameters_of(kind)) if kind is not None else []


def class_paths(arguments: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Path of a section -> its ``class_path``, over all configuration files."""
    found: dict[tuple[str, ...], str] = {}

    def walk(content: Any, above: tuple[str, ...]) -> None:
        if isinstance(content, dict):
            if isinstance(content.get("class_path"), str):
                found[above] = content["class_path"]
            for key, value in content.items():
                walk(value, above if key in NOT_A_KEY else (*above, str(key)))
        elif isinstance(content, list):
            for number, value in enumerate(content):
                walk(value, (*above, str(number)))

    for file in config_files(arguments):
        try:
            walk(yaml.safe_load(file.read_text(encoding="utf-8")), ())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
    return found


def guess(word: str, known: Sequence[str]) -> str:
    """A line with the nearest known names, or with all of them when none is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known here: {', '.join(sorted(known)[:20])}" if known else "see --help for the keys that are known"


def explain(message: str, arguments: Sequence[str], top_level: Sequence[str]) -> RequestError:
    """A parser's message as a wrong request with file, line and a suggestion.

    Args:
        message: What the parser said.
        arguments: The command line after the command's name.
        top_level: Keys that a configuration file may have at its top.
    """
    files = ", ".join(map(str, config_files(arguments))) or "the command line"
    match = UNKNOWN_ARGUMENT.search(message)
    if match:
        name = match["arguments"].split()[0].partition("=")[0]
        if not name.startswith("-"):
            return RequestError(f"unexpected argument {name!r}\nwhere: command line\nsettings are given as --key value")
        unknown, known = first_unknown(tuple(name.removeprefix("--").split(".")), top_level, arguments)
        return RequestError(f"unknown argument {name!r}\nwhere: command line\n{guess(unknown[-1], known)}")
    match = UNKNOWN_KEY.search(message)
    if match:
        key = match["a"] or match["b"] or match["c"]
        places = places_of(key, arguments)
        place = places[0] if places else Place(tuple(key.split(".")), files)
        unknown, known = first_unknown(place.path, top_level, arguments)
        dotted = ".".join(part for part in unknown if part not in NOT_A_KEY)
        return RequestError(f"unknown key {dotted!r}\nwhere: {place.where}\n{guess(unknown[-1], known)}")
    match = CLASS_PATH.search(message)
    if match:
        places = list(places_of_value(match["path"], arguments)) or [Place((), files)]
        module, _, name = match["path"].rpartition(".")
        names = public_classes(module)
        reason = match["reason"].strip() or "it cannot be imported"
        return RequestError(f"class_path {match['path']!r}: {reason}\nwhere: {places[0].where}\n{guess(name, names)}")
    match = WRONG_VALUE.search(message)
    if match:
        places = places_of(match["key"], arguments)
        where = places[0].where if places else files
        dotted = ".".join(p for p in places[0].path if p not in NOT_A_KEY) if places else match["key"]
        expected = EXPECTED.search(match["detail"])
        if expected and "Union subtypes" not in match["detail"]:
            kind, value = plain_type(expected["type"]), expected["value"]
            return RequestError(f"{dotted!r} must be {kind}, got {value!r}\nwhere: {where}")
        given = re.search(r"Given value: (.*)", match["detail"])
        choices = dict.fromkeys(re.findall(r"Expected an? (.+?)\. Got value", match["detail"]))
        wanted = [f"one of: {' | '.join(plain_type(c) for c in choices)}"[:300]] if choices else []
        detail = [line.strip(" -") for line in match["detail"].splitlines() if line.strip()]
        what = f"cannot be {given[1]}" if given else (detail[0] if detail else "is not valid")
        return RequestError("\n".join([f"{dotted!r} {what}", f"where: {where}", *wanted]))
    if "arguments are required" in message and not config_files(arguments):
        return RequestError("no configuration\nname one with --config, such as --config experiments/coarse.yaml")
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return RequestError("\n".join([*lines[:3], f"where: {files}"]))


def plain_type(text: str) -> str:
    """A type as the parser prints it, without the decoration."""
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "")


def first_unknown(
    path: tuple[str, ...], top_level: Sequence[str], arguments: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The shortest part of ``path`` that is not accepted, and what is accepted in its place.

    The parser names the deepest key below a misspelt section; the misspelling is further up.
    """
    for depth in range(1, len(path) + 1):
        if path[depth - 1] in NOT_A_KEY or path[depth - 1].isdigit():
            continue
        known = accepted_keys(path[:depth], top_level, arguments)
        if known and path[depth - 1] not in known:
            return path[:depth], known
    return path, accepted_keys(path, top_level, arguments)


def lines_of(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """``FILE, line N`` and the text of every line; files that cannot be read are passed over."""
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for number, line in enumerate(lines, 1):
            yield f"{file}, line {number}", line


def places_of_value(value: str, arguments: Sequence[str]) -> Iterator[Place]:
    """Lines of the configuration files that hold a value."""
    for where, line in lines_of(config_files(arguments)):
        if value in line:
            yield Place((), where)


def public_classes(module: str) -> list[str]:
    """Names of the classes in a module, for suggestions; empty when it cannot be imported."""
    try:
        content = vars(importlib.import_module(module)) if module else {}
    except ImportError:
        return []
    return [name for name, value in content.items() if isinstance(value, type) and not name.startswith("_")]


def refuse_lost_overrides(arguments: Sequence[str]) -> None:
    """Refuse an override of a key to which a ``${...}`` in a file refers.

    The files are resolved before the command line is read, so the interpolation would silently keep the old value.
    """
    overridden = {
        tuple(part for part in a.partition("=")[0].removeprefix("--").split(".") if part not in NOT_A_KEY): a
        for a in arguments
        if a.startswith("--")
    }
    for where, line in lines_of(config_files(arguments)):
        for reference in re.findall(r"\$\{([\w.]+)\}", line.partition("#")[0]):
            path = tuple(part for part in reference.split(".") if part not in NOT_A_KEY)
            if path in overridden:
                raise RequestError(
                    f"{overridden[path].partition('=')[0]} would not reach ${{{reference}}}, which refers to it\n"
                    f"where: {where}\n"
                    "change the value in the file, or write that line's value out"
                )
