"""A small evaluation card: intervals, an empty cell, failures, a player, a probe, and something that was not made."""

from __future__ import annotations

from hafm_lightning.evaluation.card.card import Card, Column, Player, Row, Table, Value
from hafm_lightning.page.figures import Curve, Plot

FAD = Column("fad_logmel", "FAD logmel", "lower", "A distance.")
KEY = Column("key_score", "key <MIREX>", "higher", "Agreement of keys.")


def card_row(system: str, fad: Value, key: Value, failures: dict[str, int] | None = None) -> Row:
    """A row with two columns."""
    failures = failures or {}
    values = {"fad_logmel": fad, "key_score": key}
    return Row(system, f"system {system}", 33, sum(failures.values()), failures, {"seed": 0}, values)


def small_card() -> Card:
    """One table of three systems, one probe."""
    table = Table(
        "paper",
        ["33 segments of 3 s"],
        [FAD, KEY],
        [
            card_row("a", Value(0.0, 0.0, 0.25), Value(0.9, 0.8, 1.0)),
            card_row("b", Value(1.5, 1.25, 1.75, "few rows"), Value(None, note="no key"), {"the vocal is silent": 2}),
            card_row("c", Value(2.0, note="few rows"), Value(0.1, 0.0, 0.2)),
        ],
        [Player("best by key", "b", "song@1.00", 0.5, {"vocal": "paper/a b.wav"})],
        checks=["FAD alone is blind here"],
    )
    curve = Curve("semantic", [-1.0, 0.0, 1.0], [0.5, 0.0, 0.25], [0.4, 0.0, 0.2], [0.6, 0.0, 0.3])
    plot = Plot("Vocal moved in time", "seconds late", "nats", [curve], {"another song": 0.75})
    return Card("Title", {"torch": "2", "model": {"coarse": "abc"}}, [table], [plot], {"retrieval": "no shards"})
