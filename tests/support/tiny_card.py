"""A small card, and a parser that checks the tags of its page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from hafm_lightning.evaluation.card.card import (
    Card,
    Column,
    Curve,
    Player,
    Plot,
    Row,
    Table,
    Value,
)

FAD = Column("fad_logmel", "FAD logmel", "lower", "A distance.")

KEY = Column("key_score", "key <MIREX>", "higher", "Agreement of keys.")


def row(system: str, fad: Value, key: Value, failures: dict[str, int] | None = None) -> Row:
    failures = failures or {}
    values = {"fad_logmel": fad, "key_score": key}
    return Row(system, f"system {system}", 33, sum(failures.values()), failures, {"seed": 0}, values)


def make_card(tmp_path: Path) -> Card:
    """A card of one table, one plot and one player, whose file lies in ``tmp_path``."""
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "a b.wav").write_bytes(b"RIFF")
    table = Table(
        "paper",
        ["33 segments of 3 s"],
        [FAD, KEY],
        [
            row("a", Value(0.0, 0.0, 0.25), Value(0.9, 0.8, 1.0)),
            row("b", Value(1.5, 1.25, 1.75, "few rows"), Value(None, note="no key"), {"the vocal is silent": 2}),
            row("c", Value(2.0, note="few rows"), Value(0.1, 0.0, 0.2)),
        ],
        [Player("best by key", "b", "song@1.00", 0.5, {"vocal": "paper/a b.wav"})],
        checks=["FAD alone is blind here"],
    )
    curve = Curve("semantic", [-1.0, 0.0, 1.0], [0.5, 0.0, 0.25], [0.4, 0.0, 0.2], [0.6, 0.0, 0.3])
    plot = Plot("Vocal moved in time", "seconds late", "nats", [curve], {"another song": 0.75})
    return Card("Title", {"torch": "2", "model": {"coarse": "abc"}}, [table], [plot], {"retrieval": "no shards"})


class Page(HTMLParser):
    """Checks that tags close in order; collects text and attributes."""

    VOID = frozenset({"meta", "br", "img", "line", "circle", "polyline", "polygon"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "circle" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
