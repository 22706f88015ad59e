"""What a page holds, and the template that turns it into HTML.

A page is one file with its styles; it runs no script and loads nothing but the sounds and pictures beside it.
jinja2 escapes every text, so that names of songs and messages can hold any character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from hafm_lightning.page.figures import COLOURS, WIDTH, Figure


@dataclass(frozen=True)
class Column:
    """A heading and a sentence that explains it; ``words`` stand left, numbers right."""

    heading: str
    meaning: str = ""
    words: bool = False


@dataclass(frozen=True)
class Cell:
    """A text, a smaller second line (an interval), a remark for the mouse, and why the cell stands out."""

    text: str
    small: str = ""
    remark: str = ""
    mark: Literal["", "best", "bad"] = ""


@dataclass(frozen=True)
class Table:
    """Named rows by columns; ``corner`` is the heading of the names. A row that does not fit is a ValueError."""

    corner: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns):
                raise ValueError(f"row {name!r} has {len(cells)} cells for {len(self.columns)} columns")

    @classmethod
    def of(cls, head: Sequence[str], rows: Iterable[Sequence[Any]], words: bool = False) -> Table:
        """A table of cells or plain values; the first of ``head`` and of each row are corner and names."""
        columns = tuple(Column(name, words=words) for name in head[1:])
        named = [
            (str(name), tuple(cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in cells))
            for name, *cells in rows
        ]
        return cls(head[0], columns, tuple(named))


@dataclass(frozen=True)
class Player:
    """A clip to listen to: heading, a line of code (tokens, an id), and label -> sound file."""

    title: str
    detail: str
    sounds: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it, shown in the order of these fields; files are relative to the page.

    ``notes`` and ``warnings`` are lists of sentences, ``facts`` names with values, ``pictures`` image files with what
    they show in words. ``open`` and ``closed`` sections can be folded into one line.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    players: tuple[Player, ...] = ()
    figures: tuple[Figure, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    fold: Literal["", "open", "closed"] = ""


class Page(Section):
    """The section of level 1. Links at its top lead to its sections, except folded ones."""


def address(path: str) -> str:
    """A path relative to the page as a link, in which ``#``, ``?`` and any byte stay part of the name.

    Raises:
        ValueError: The path is absolute: the link would break with its folder's name, or ask another machine.
    """
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", path):
        raise ValueError(f"{path!r} is absolute; a page takes paths relative to itself")
    return quote(path, errors="surrogateescape")


@cache
def _template() -> Template:
    loader = PackageLoader("hafm_lightning.page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["address"] = address
    environment.filters["anchor"] = partial(quote, errors="backslashreplace")
    return environment.get_template("page.html")


def render(page: Page) -> str:
    """The page as HTML; bytes of names that are not UTF-8 are shown as ``\\udcff``, so that it can be saved."""
    text = _template().render(page=page, colours=COLOURS, width=WIDTH)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
