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

from hafm_lightning.evaluation.card.card import Column, Row, Value

TRUTH, CODECS, RANDOM = "ground_truth", ("codec_8", "codec_4"), "random"
UNJUDGED = ("real_time_factor", "peak_memory_mib", "beats_found", "fad_infinity")
"""Columns that do not describe the music, or have no interval."""
DISTANCES = ("fad_", "kd_")
"""Columns that compare sound alone: random pairing may be good in them."""


def control_checks(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """One line for each condition that can be checked with these rows; no lines without a ground truth."""
    by_name = {row.system: row for row in rows}
    if TRUTH not in by_name:
        return []
    truth = by_name[TRUTH]
    judged = [column for column in columns if column.better and not column.key.startswith(UNJUDGED)]
    lines = []
    others = [row for row in rows if row is not truth]
    if others:
        above = [
            f"{column.label} ({', '.join(names)})"
            for column in judged
            if (names := [row.label for row in others if _clearly_better(column, row, truth)])
        ]
        better = "Scores above the ground truth: {}. These columns do not measure fit"
        lines.append(_line("Ground truth is best in every column", better, above))
    if all(name in by_name for name in CODECS):
        order = [truth, *(by_name[name] for name in CODECS)]
        distances = [column for column in judged if column.key.startswith(DISTANCES)]
        wrong = [column.label for column in distances if not _rising([row.values[column.key] for row in order])]
        if distances:
            holds = "Every distance ranks ground truth, codec 8 and codec 4 in this order"
            lines.append(
                _line(holds, "Distances that do not rank 8 codebooks before 4: {}. Ignore these columns", wrong)
            )
    if RANDOM in by_name:
        pairing = [column for column in judged if not column.key.startswith(DISTANCES)]
        equal = [column.label for column in pairing if not _apart(column, truth, by_name[RANDOM])]
        if pairing:
            holds = "Ground truth is significantly above random pairing in every coherence score"
            fails = "No significant difference between true and random pairs: {}. Ignore these columns"
            lines.append(_line(holds, fails, equal))
    return lines


def _line(holds: str, fails: str, columns: Sequence[str]) -> str:
    return f"{fails.format('; '.join(columns))}." if columns else f"{holds}."


def _clearly_better(column: Column, row: Row, truth: Row) -> bool:
    """Whether the row's interval lies beyond the ground truth's."""
    value, best = row.values[column.key], truth.values[column.key]
    if value.low is None or value.high is None or best.low is None or best.high is None:
        return False
    return value.high < best.low if column.better == "lower" else value.low > best.high


def _apart(column: Column, truth: Row, random: Row) -> bool:
    """Whether the ground truth's interval is the better one as a whole; True where the ground truth has no value."""
    return truth.values[column.key].value is None or _clearly_better(column, truth, random)


def _rising(cells: Sequence[Value]) -> bool:
    values = [cell.value for cell in cells if cell.value is not None]
    return all(first < second for first, second in pairwise(values))
