"""Directives that write the reference from the program itself, so that it cannot fall behind.

``command-list``
    Every command with its line of help.
``command-help WORDS``
    What ``python -m hafm_lightning WORDS --help`` prints.
``settings CLASS``
    A table of the keys of a dataclass, or of the arguments of a class: type, default, meaning. With
    ``:prefix:`` the keys are those below another key; dataclasses inside it are opened, with dotted keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pkgutil
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import docstring_parser
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROLE = re.compile(r":\w+:`~?([\w.]+)`")
"""A reference in a docstring."""


class Key(NamedTuple):
    """A row of a table of settings."""

    name: str
    type: str
    default: str
    meaning: str


def plain_type(hint: Any) -> str:
    """A type in the words that users write: module names left out."""
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    text = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), text)
    return re.sub(r"[\w.]+\.(?=\w)", "", text).replace("NoneType", "null").replace("None", "null")


def plain_default(value: Any) -> str:
    """A default as it would stand in YAML; empty where there is none."""
    if value is dataclasses.MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, made by its factory where it has one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def arguments_of(function: Any) -> dict[str, Any]:
    """The arguments of a method with their defaults; autodoc puts source text into the signature alone."""
    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    given = function.__defaults__ or ()
    without = dict.fromkeys(names[: len(names) - len(given)], dataclasses.MISSING)
    return without | dict(zip(names[len(without) :], given, strict=True))


def keys_of(kind: type[Any], prefix: str = "", given: Any = None) -> Iterator[Key]:
    """A row for each argument of ``kind``; those that are dataclasses are replaced by their own rows.

    ``given`` is the object of that class that a larger class has as its default.
    """
    documented = [docstring_parser.parse_from_object(kind), docstring_parser.parse(kind.__init__.__doc__ or "")]
    meanings = {p.arg_name: p.description or "" for text in documented for p in text.params}
    hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
    if dataclasses.is_dataclass(kind):
        defaults = {field.name: default_of(field) for field in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(given):
            defaults = {name: getattr(given, name) for name in defaults}
    else:
        defaults = arguments_of(kind.__init__)
    for name, default in defaults.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            yield from keys_of(typing.cast("type[Any]", hint), f"{prefix}{name}.", default)
            continue
        meaning = ROLE.sub(r"\1", " ".join(meanings.get(name, "").split()))
        if not meaning:
            raise ExtensionError(f"{kind.__module__}.{kind.__name__}: its docstring does not explain {name!r}")
        yield Key(f"{prefix}{name}", plain_type(hint), plain_default(default), meaning)


class CommandList(SphinxDirective):
    """A table of all commands."""

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        from hafm_lightning import cli

        rows = [Key(name, "", "", text) for name, (_, text) in cli.available().items()]
        return [table_of(("command", "what it does"), [(row.name, row.meaning) for row in rows])]


class CommandHelp(SphinxDirective):
    """The help of a command, word for word."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        from hafm_lightning import cli

        words, printed = self.arguments[0].split(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = cli.main([*words, "--help"])
        text = printed.getvalue().strip()
        if code != cli.DONE or not text:
            raise ExtensionError(f"{' '.join(words)} --help ended with exit code {code}: {text[-300:]}")
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


class Settings(SphinxDirective):
    """A table of keys."""

    required_arguments = 1
    option_spec: typing.ClassVar[dict[str, Any]] = {"prefix": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Called by Sphinx."""
        kind = pkgutil.resolve_name(self.arguments[0])
        rows = list(keys_of(kind, self.options.get("prefix", "")))
        return [table_of(("key", "type", "default", "meaning"), [tuple(row) for row in rows])]


def table_of(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> nodes.table:
    """A table whose last column is text, and the others code."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    body, top = nodes.tbody(), nodes.thead()
    top += row_of([nodes.paragraph(text=text) for text in head])
    for row in rows:
        cells: list[nodes.Node] = [nodes.paragraph("", "", nodes.literal(text=text)) for text in row[:-1]]
        body += row_of([*cells, nodes.paragraph("", "", *inline_code(row[-1]))])
    group += [top, body]
    return nodes.table("", group)


def row_of(cells: list[nodes.Node]) -> nodes.row:
    """One row of a table."""
    row = nodes.row()
    row += [nodes.entry("", cell) for cell in cells]
    return row


def inline_code(text: str) -> Iterator[nodes.Node]:
    """The text of a docstring, with ``code`` and `code` as code."""
    for number, part in enumerate(re.split(r"``?([^`]+)``?", text)):
        if part:
            yield nodes.literal(text=part) if number % 2 else nodes.Text(part)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command-list", CommandList)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True}
