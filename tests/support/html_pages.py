"""Read a page back: tags in order and balanced, text, attributes, links, sizes in its style sheet."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

VOID = frozenset({"meta", "br", "img", "hr", "link", "input"})
"""Elements of HTML without an end tag."""


class ParsedPage(HTMLParser):
    """A page or a part of one; AssertionError where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str, style: str | None = None) -> list[dict[str, str]]:
        """Attributes of every such element, or of those with this class."""
        found = [attributes for name, attributes in self.tags if name == tag]
        return [a for a in found if style is None or style in a.get("class", "").split()]

    def before(self, tag: str) -> list[str]:
        """Tags before the first of this name."""
        return list(itertools.takewhile(lambda name: name != tag, (name for name, _ in self.tags)))

    def check_whole(self) -> None:
        """A document that stands alone: one head, links that lead somewhere, no script and no request to elsewhere."""
        assert self.source.lstrip().startswith("<!doctype html>")
        assert [len(self.all(tag)) for tag in ("html", "head", "body", "h1")] == [1] * 4
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in self.all("meta")
        assert len([tag for tag in self.before("body") if tag == "title"]) == 1
        assert "prefers-color-scheme: dark" in self.source
        assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in self.tags}
        assert not [name for _, attributes in self.tags for name in attributes if name.startswith("on")]
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in self.tags:
            for name in ("src", "href", "srcset", "action", "data", "poster", "style"):
                value = attributes.get(name, "")
                assert not re.match(r"\s*(/|\\|[a-z][a-z0-9+.-]*:)", value, re.IGNORECASE), (tag, value)
            if tag == "a":
                assert attributes["href"].removeprefix("#") in ids
            if tag in ("audio", "svg"):
                assert attributes["aria-label"].strip()
            if tag == "img":
                assert attributes["alt"].strip()
        (style,) = re.findall(r"<style>(.*?)</style>", self.source, re.DOTALL)
        assert not re.search(r"url\(|@import|expression", style)

    def check_narrow(self, width_px: int = 360) -> None:
        """Nothing in the style sheet is wider than a phone; tables stand in boxes that scroll."""
        (style,) = re.findall(r"<style>(.*?)</style>", self.source, re.DOTALL)
        flexible = re.sub(r"min\(100%, *[\d.]+px\)|max-width: *[\d.]+px", "", style)
        assert [size for size in re.findall(r"([\d.]+)px", flexible) if float(size) > width_px] == []
        assert [size for size in re.findall(r"([\d.]+)rem", style) if float(size) * 16 > width_px] == []
        assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style)
        for element in ("svg", "audio"):
            assert re.search(rf"{element} \{{[^}}]*width: 100%", style)
        assert re.search(r"img \{[^}]*max-width: 100%", style)
        boxes = self.all("div", "scroll")
        assert len(boxes) == len(self.all("table")) == self.source.count("><table>")
        assert all(box["tabindex"] == "0" and box["aria-label"].strip() for box in boxes)
        for tag in ("svg", "table", "img", "div"):
            assert not any("width" in attributes or "style" in attributes for attributes in self.all(tag))
