"""Controls of a card's columns: which columns carry information on these clips, and which do not.

Three conditions are checked in every table:

* The ground truth is best. Where another row is better by more than the intervals allow, the column measures something
  else than likeness to real playing.
* A distance grows from the ground truth to the codec with 8 and with 4 codebooks. Where it does not, the embedding is
  insensitive to the last codebooks, or the clips are too few: the column cannot compare two stages with three.
* The ground truth's coherence is above random pairing's. Where the intervals overlap, the column cannot show whether an
  accompaniment fits its vocal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hafm_lightning.evaluation.card.card import Column, Row

UNJUDGED = ("real_time_factor", "peak_memory_mib", "beats_found", "fad_infinity")
"""Columns that do not describe the music, or have no interval."""
DISTANCES = ("fad_", "kd_")
"""Columns that compare sound alone: random pairing may be good in them."""


def control_checks(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """One line for each condition that can be checked with these rows; no lines without a ground truth."""
    by_name = {row.system: row for row in rows}
    truth, random = by_name.get("ground_truth"), by_name.get("random")
    codecs = [by_name[name] for name in ("codec_8", "codec_4") if name in by_name]
    if truth is None:
        return []
    judged = [column for column in columns if column.better and not column.key.startswith(UNJUDGED)]
    distances = [column for column in judged if column.key.startswith(DISTANCES)]
    pairing = [column for column in judged if column not in distances]
    lines = []
    others = [row for row in rows if row is not truth]
    if others:
        better = [(column, [row.label for row in others if _clearly_better(column, row, truth)]) for column in judged]
        above = [f"{column.label} ({', '.join(names)})" for column, names in better if names]
        fails = "Scores above the ground truth: {}. These columns do not measure fit"
        lines.append(_line("Ground truth is best in every column", fails, above))
    if len(codecs) == 2 and distances:
        wrong = [column.label for column in distances if not _rising(column, [truth, *codecs])]
        holds = "Every distance ranks ground truth, codec 8 and codec 4 in this order"
        fails = "Distances that do not rank 8 codebooks before 4: {}. Ignore these columns"
        lines.append(_line(holds, fails, wrong))
    if random is not None and pairing:
        defined = [column for column in pairing if truth.values[column.key].value is not None]
        equal = [column.label for column in defined if not _clearly_better(column, truth, random)]
        holds = "Ground truth is significantly above random pairing in every coherence score"
        fails = "No significant difference between true and random pairs: {}. Ignore these columns"
        lines.append(_line(holds, fails, equal))
    return lines


def _line(holds: str, fails: str, columns: Sequence[str]) -> str:
    return f"{fails.format('; '.join(columns))}." if columns else f"{holds}."


def _clearly_better(column: Column, row: Row, other: Row) -> bool:
    """Whether the whole interval of ``row`` is better than that of ``other``."""
    value, best = row.values[column.key], other.values[column.key]
    if value.low is None or value.high is None or best.low is None or best.high is None:
        return False
    return value.high < best.low if column.better == "lower" else value.low > best.high


def _rising(column: Column, rows: Sequence[Row]) -> bool:
    values = [value for row in rows if (value := row.values[column.key].value) is not None]
    return all(first < second for first, second in pairwise(values))
