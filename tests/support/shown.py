"""What README and docs show: pages, blocks of code, command lines, modules that a tutorial has the reader write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    path for path in DOCS.rglob("*.md") if "_build" not in path.parts
)
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
MODULE = re.compile(r"# (\w+\.py)\n")
"""First line of a block that the reader saves as a file."""


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is to be saved as."""
        match = MODULE.match(self.text)
        return match[1] if self.language == "python" and match else None

    @property
    def lines(self) -> list[str]:
        """Its lines, with continued ones joined."""
        return self.text.replace("\\\n", " ").splitlines()


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page, in order; also those that are indented, as in a list."""
    found = re.findall(r"^( *)```([\w{}-]*)[^\n]*\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(language, re.sub(rf"^{indent}", "", inner, flags=re.MULTILINE)) for indent, language, inner in found]


def fenced(text: str) -> Iterator[str]:
    """Lines of the blocks of code, with continued lines joined."""
    for block in blocks(text):
        yield from block.lines


def words_of(line: str) -> tuple[str, ...] | None:
    """The words after ``-m hafm_lightning`` or ``hafm`` of a command line of this program; None for any other line."""
    match = re.search(r"(?:-m hafm_lightning|^\s*hafm) (.*)", line)
    if match and re.match(r"[\w=/]*\s*(python|torchrun|srun|hafm)", line):
        words = shlex.split(match[1], comments=True)
        return tuple(words[: words.index(">")] if ">" in words else words)
    return None


def commands_of(path: Path) -> Iterator[tuple[str, ...]]:
    """Every command line of this program that a file shows."""
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`(python -m hafm_lightning [^`\n]*)`", text)
    lines = [*fenced(text), *inline] if path.suffix == ".md" else [line.lstrip("# ") for line in text.splitlines()]
    yield from filter(None, map(words_of, lines))


def write_modules(page: Path, folder: Path) -> list[str]:
    """Save the modules that a page has its reader write; their names."""
    names = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
            names.append(block.file)
    return names
