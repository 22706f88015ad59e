"""What became of the tries: the table that is printed, and that docs/faults.md shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- tries: begin -->", "<!-- tries: end -->"


@dataclass(frozen=True)
class Outcome:
    """One try; ``fell`` is empty where it held."""

    kind: str
    name: str
    fell: list[str] = field(default_factory=list)
    seconds: float = 0.0


def counts(outcomes: Sequence[Outcome]) -> list[tuple[str, int, int]]:
    """Kind, tries, held; in the order in which the kinds come."""
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows = []
    for kind in kinds:
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        rows.append((kind, len(of_kind), sum(not outcome.fell for outcome in of_kind)))
    return [*rows, ("all", len(outcomes), sum(not outcome.fell for outcome in outcomes))]


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table in plain text."""
    rows = [("kind", "tries", "held"), *((kind, str(tries), str(held)) for kind, tries, held in counts(outcomes))]
    return "\n".join(f"{kind:<36}{tries:>7}{held:>7}" for kind, tries, held in rows)


def markdown(outcomes: Sequence[Outcome], seed: int) -> str:
    """The table for the docs."""
    lines = ["| kind | tries | held |", "|---|---:|---:|"]
    lines += [f"| {kind} | {tries} | {held} |" for kind, tries, held in counts(outcomes)]
    return "\n".join([*lines, "", f"Seed {seed}."])


def write_docs(path: Path, outcomes: Sequence[Outcome], seed: int) -> None:
    """Replace the table between the marks of a page."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{markdown(outcomes, seed)}\n{END}{after}")
