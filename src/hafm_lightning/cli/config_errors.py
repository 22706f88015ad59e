"""Configuration mistakes, told in a few lines: what is wrong, in which file and line, and what was probably meant.

Unknown keys are found before the parser runs (:mod:`hafm_lightning.cli.config_keys`). The parser checks the values, but
reports a wrong one below ninety lines of usage, without the file. Here its one-sentence messages are taken apart, and
the key is looked up in the YAML files and on the command line.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from hafm_lightning.cli.config_keys import CONFIG_OPTIONS, SPEC
from hafm_lightning.errors import RequestError
from hafm_lightning.suggestions import guess
from hafm_lightning.yaml_keys import Source, key_lines, read_tree

UNKNOWN_KEY = re.compile(
    r"(?:Option|Key) ['\"](?P<a>[^'\"]+)['\"] is not (?:accepted|expected)"
    r"|does not accept (?:option|nested key) ['\"](?P<b>[^'\"]+)['\"]"
    r"|No action for key ['\"](?P<c>[^'\"]+)['\"]"
)
UNKNOWN_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: (?P<arguments>.+)")
WRONG_VALUE = re.compile(r"Parser key ['\"](?P<key>[^'\"]+)['\"]:?\s*(?P<detail>.*)", re.DOTALL)
EXPECTED = re.compile(r"Expected an? (?P<type>.+?)\. Got value: (?P<value>[^\n]*)")
CLASS_PATH = re.compile(r"Problem with given class_path ['\"](?P<path>[^'\"]+)['\"]:\s*(?P<reason>[^\n]*)")


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
        if flag in CONFIG_OPTIONS:
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
    except RecursionError as error:
        raise RequestError(f"configuration file {file} nests too deeply to be read") from error
    except yaml.YAMLError:
        return
    if not isinstance(content, dict):
        raise RequestError(
            f"configuration file {file} holds no settings (a YAML mapping with `model`, `data`, `trainer`)\n"
            "the shipped ones are in experiments/"
        )


def places_of(key: str, arguments: Sequence[str]) -> list[Place]:
    """Where a key that the parser named occurs; it may have left out the beginning of the path."""
    parts = tuple(part for part in key.split(".") if part not in SPEC)
    found = []
    for argument in arguments:
        name = argument.partition("=")[0]
        path = tuple(name.removeprefix("--").split("."))
        if name.startswith("--") and path[-len(parts) :] == parts:
            found.append(Place(path, f"command line: {name}"))
    for file in config_files(arguments):
        for path, line in key_lines(read_tree(file)):
            plain = tuple(part for part in path if part not in SPEC)
            if plain[-len(parts) :] == parts:
                found.append(Place(path, Source(str(file)).place(line)))
    return found


def explain(message: str, arguments: Sequence[str]) -> RequestError:
    """A parser's message as a wrong request with file, line and a suggestion.

    Args:
        message: What the parser said.
        arguments: The command line after the command's name.
    """
    files = ", ".join(map(str, config_files(arguments))) or "the command line"
    match = UNKNOWN_ARGUMENT.search(message)
    if match:
        name = match["arguments"].split()[0].partition("=")[0]
        if not name.startswith("-"):
            return RequestError(f"unexpected argument {name!r}\nwhere: command line\nsettings are given as --key value")
        return RequestError(f"unknown argument {name!r}\nwhere: command line\n{guess(name, ())}")
    match = UNKNOWN_KEY.search(message)
    if match:
        key = match["a"] or match["b"] or match["c"]
        places = places_of(key, arguments)
        place = places[0] if places else Place(tuple(key.split(".")), files)
        dotted = ".".join(part for part in place.path if part not in SPEC)
        return RequestError(f"unknown key {dotted!r}\nwhere: {place.where}\n{guess(dotted, ())}")
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
        dotted = ".".join(p for p in places[0].path if p not in SPEC) if places else match["key"]
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
        tuple(part for part in a.partition("=")[0].removeprefix("--").split(".") if part not in SPEC): a
        for a in arguments
        if a.startswith("--")
    }
    for where, line in lines_of(config_files(arguments)):
        for reference in re.findall(r"\$\{([\w.]+)\}", line.partition("#")[0]):
            path = tuple(part for part in reference.split(".") if part not in SPEC)
            if path in overridden:
                raise RequestError(
                    f"{overridden[path].partition('=')[0]} would not reach ${{{reference}}}, which refers to it\n"
                    f"where: {where}\n"
                    "change the value in the file, or write that line's value out"
                )
