"""What the controls say of a card's columns: which of them can tell anything on these clips, and which cannot.

A column is only worth reading where its controls come out as they must. Three questions are asked of every table:

* Is the ground truth best? Where another row passes it by more than the intervals allow, the column measures something
  else than likeness to real playing.
* Does a distance grow from the ground truth to the codec with 8 and with 4 codebooks? Where it does not, the embedding
  does not hear what the last codebooks add, or the clips are too few: two and three stages cannot be told apart by it.
* Is the ground truth's coherence above random pairing's? Where the intervals overlap, the column cannot tell whether an
  accompaniment belongs to its vocal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hafm_lightning.evaluation.card.card import Column, Row, Value

TRUTH, CODECS, RANDOM = "ground_truth", ("codec_8", "codec_4"), "random"
UNJUDGED = ("real_time_factor", "peak_memory_mib", "beats_found", "fad_infinity")
"""Columns that say nothing of the music, or have no interval."""
DISTANCES = ("fad_", "kd_")
"""Columns of sound, which random pairing may well pass."""


def control_checks(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """One line for each question that the rows at hand allow; no lines without a ground truth."""
    by_name = {row.system: row for row in rows}
    if TRUTH not in by_name:
        return []
    truth = by_name[TRUTH]
    judged = [column for column in columns if column.better and not column.key.startswith(UNJUDGED)]
    lines = []
    others = [row for row in rows if row is not truth]
    if others:
        passed = [
            f"{column.label} ({', '.join(names)})"
            for column in judged
            if (names := [row.label for row in others if _clearly_better(column, row, truth)])
        ]
        lines.append(_line("Ground truth is best in every column", "Ground truth is clearly passed in", passed))
    if all(name in by_name for name in CODECS):
        order = [truth, *(by_name[name] for name in CODECS)]
        distances = [column for column in judged if column.key.startswith(DISTANCES)]
        wrong = [column.label for column in distances if not _rising([row.values[column.key] for row in order])]
        if distances:
            holds = "Ground truth, codec 8 and codec 4 come in this order in every distance"
            lines.append(_line(holds, "Cannot tell 8 codebooks from 4 (wrong order)", wrong))
    if RANDOM in by_name:
        pairing = [column for column in judged if not column.key.startswith(DISTANCES)]
        blind = [column.label for column in pairing if not _apart(column, truth, by_name[RANDOM])]
        if pairing:
            holds = "Ground truth lies above random pairing, intervals apart, in every score of coherence"
            lines.append(_line(holds, "Cannot tell true from random pairing on these clips: ignore", blind))
    return lines


def _line(holds: str, fails: str, columns: Sequence[str]) -> str:
    return f"{fails}: {'; '.join(columns)}." if columns else f"{holds}."


def _clearly_better(column: Column, row: Row, truth: Row) -> bool:
    """Whether the row's interval lies beyond the ground truth's."""
    mine, best = row.values[column.key], truth.values[column.key]
    if None in (mine.low, mine.high, best.low, best.high):
        return False
    assert mine.low is not None
    assert mine.high is not None
    assert best.low is not None
    assert best.high is not None
    return mine.high < best.low if column.better == "lower" else mine.low > best.high


def _apart(column: Column, truth: Row, random: Row) -> bool:
    """Whether both have intervals, and the ground truth's is the better one as a whole; also where there is none."""
    if truth.values[column.key].value is None:
        return True
    return _clearly_better(column, truth, random)


def _rising(cells: Sequence[Value]) -> bool:
    values = [cell.value for cell in cells if cell.value is not None]
    return all(first < second for first, second in pairwise(values))
