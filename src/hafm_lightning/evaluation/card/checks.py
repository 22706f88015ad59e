"""Controls of a card's columns: which columns carry information on these clips, and where the model stands in them.

A control has to be able to fail. The ground truth itself cannot: beats, key, onsets and all distances compare it with
itself, so that it is perfect in them even if the metric draws its answer from a hat. What is compared instead:

* *Coherence*: the ground truth **through the codec** with random pairing, clip by clip (APA: over sets of clips). Where
  the 95 % interval of the difference does not lie above 0, the column is **uninformative** on these clips.
* *Distances* (FAD, KD): the same with noise. Random pairing may play the very clips of the reference, and says nothing.

Beside these verdicts, which every column carries, lines state what was compared and with what result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from hafm_lightning.evaluation.card.card import Column, Row
from hafm_lightning.evaluation.contrasts import Contrasts
from hafm_lightning.evaluation.intervals import FEW_SONGS, Interval
from hafm_lightning.evaluation.systems.base import MODEL_PREFIX

UNJUDGED = ("real_time_factor", "peak_memory_mib", "beats_found", "lost")
"""Columns that do not describe the music."""
DISTANCES = ("fad_", "kd_")
"""Columns that compare sound alone: random pairing may be good in them."""
INFINITY = "fad_infinity_"
"""Has no value for fewer clips, and so no interval: it shares the verdict of its FAD."""
WITH_ITSELF = (*DISTANCES, "apa_", "beat_f", "beat_c", "beat_a", "key_", "onset_f1_reference")
"""Columns in which the ground truth is compared with itself."""
CODECS = ("codec_8", "codec_4")
TRIVIAL = ("vocal_alone", "silence", "noise")
MODELS = ("two_stages", "three_stages", "clean_vocal", "separated")


@dataclass(frozen=True)
class Judgement:
    """The columns with their verdicts, what was tested, and where models stand: sentences and numbers."""

    columns: list[Column]
    checks: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    positions: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)


def judge(columns: Sequence[Column], rows: Sequence[Row], contrasts: Contrasts) -> Judgement:
    """Judge every column and every model that these rows allow."""
    judged = [_judged(column, rows, contrasts) for column in columns]
    verdict_of = {column.key: column for column in judged}
    for index, column in enumerate(judged):
        fad = verdict_of.get(column.key.replace(INFINITY, "fad_", 1))
        if column.key.startswith(INFINITY) and fad is not None:
            judged[index] = replace(column, informative=fad.informative, judgement=fad.judgement)
    checks = [
        *_lines_of_verdicts(judged, rows),
        *_above_the_truth(judged, rows, contrasts),
        *_order_of_codecs(judged, rows, contrasts),
        *_trivial_rows(judged, rows, contrasts),
    ]
    songs = len(set(contrasts.songs))
    if checks and songs < FEW_SONGS:
        checks.append(f"{songs} songs: the intervals are wide, and a column called uninformative may need more songs")
    return Judgement(judged, checks, *_standing(judged, rows, contrasts))


def _comparison(column: Column, names: set[str]) -> tuple[str, str] | None:
    """The two rows that judge a column, the better one first; None if it is not judged or the rows are missing."""
    if not column.better or column.key.startswith((*UNJUDGED, INFINITY)):
        return None
    better = next((name for name in CODECS if name in names), None)
    if column.key.startswith(DISTANCES):
        return (better, "noise") if better is not None and "noise" in names else None
    if better is None and "ground_truth" in names and not column.key.startswith(WITH_ITSELF):
        better = "ground_truth"
    return (better, "random") if better is not None and "random" in names else None


def _judged(column: Column, rows: Sequence[Row], contrasts: Contrasts) -> Column:
    labels = {row.system: row.label for row in rows}
    pair = _comparison(column, set(labels))
    gain = None if pair is None else _gain(column, *pair, contrasts)
    if pair is None or gain is None:
        return column
    better, worse = (labels[name] for name in pair)
    numbers = f"{gain.mean:.{column.digits}f} [{gain.low:.{column.digits}f}, {gain.high:.{column.digits}f}]"
    if gain.low > 0:
        return replace(column, informative=True, judgement=f"informative: {better} is better than {worse} by {numbers}")
    text = f"uninformative on these clips: {better} is not significantly better than {worse} ({numbers})"
    return replace(column, informative=False, judgement=text)


def _gain(column: Column, first: str, second: str, contrasts: Contrasts) -> Interval | None:
    """By how much ``first`` is better than ``second``."""
    found = contrasts.difference(column.key, first, second)
    if found is None or column.better != "lower":
        return found
    return Interval(-found.mean, -found.high, -found.low)


def _lines_of_verdicts(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    labels = {row.system: row.label for row in rows}
    by_pair: dict[tuple[str, str], dict[bool, list[str]]] = {}
    for column in columns:
        pair = _comparison(column, set(labels))
        if pair is not None and column.informative is not None:
            by_pair.setdefault(pair, {True: [], False: []})[column.informative].append(column.label)
    lines = []
    for (better, worse), found in by_pair.items():
        text = f"{labels[better]} against {labels[worse]}, on the same clips"
        if found[True]:
            text += f": significantly better in {', '.join(found[True])}"
        if found[False]:
            text += f"; no significant difference in {', '.join(found[False])}: uninformative on these clips, ignore"
        lines.append(f"{text}.")
    return lines


def _above_the_truth(columns: Sequence[Column], rows: Sequence[Row], contrasts: Contrasts) -> list[str]:
    """Rows above the ground truth, in the columns in which it is not compared with itself."""
    if "ground_truth" not in {row.system for row in rows}:
        return []
    free = [it for it in columns if it.informative is not None and not it.key.startswith(WITH_ITSELF)]
    fixed = [it.label for it in columns if it.informative is not None and it.key.startswith(WITH_ITSELF)]
    lines = []
    if free:
        above: dict[str, list[str]] = {}
        for column, row in product(free, rows):
            gain = None if row.system == "ground_truth" else _gain(column, row.system, "ground_truth", contrasts)
            if gain is not None and gain.low > 0:
                above.setdefault(column.label, []).append(row.label)
        names = ", ".join(column.label for column in free)
        found = "; ".join(f"{label} ({', '.join(better)})" for label, better in above.items())
        tested = f"Every row against the ground truth in {names}"
        rewards = f"significantly above it: {found}. There the column rewards something else than fit"
        lines.append(f"{tested}: {rewards if found else 'none is significantly above it'}.")
    if fixed:
        lines.append(
            f"The ground truth is compared with itself in {', '.join(fixed)}: being best there proves nothing."
        )
    return lines


def _order_of_codecs(columns: Sequence[Column], rows: Sequence[Row], contrasts: Contrasts) -> list[str]:
    if not set(CODECS) <= {row.system for row in rows}:
        return []
    gains = {it.label: _gain(it, *CODECS, contrasts) for it in columns if it.key.startswith(DISTANCES)}
    found = {label: gain.low > 0 for label, gain in gains.items() if gain is not None}
    if not found:
        return []
    right, wrong = ([label for label in found if found[label] is holds] for holds in (True, False))
    text = "8 codebooks against 4"
    text += f": significantly nearer in {', '.join(right)}" if right else ""
    text += (
        f"; no significant difference in {', '.join(wrong)}, which cannot compare three stages with two"
        if wrong
        else ""
    )
    return [f"{text}."]


def _trivial_rows(columns: Sequence[Column], rows: Sequence[Row], contrasts: Contrasts) -> list[str]:
    """Whether a row that cannot be an accompaniment beats random pairing."""
    labels = {row.system: row.label for row in rows if row.system in TRIVIAL}
    coherence = [it for it in columns if it.informative is not None and not it.key.startswith(DISTANCES)]
    if not labels or not coherence:
        return []
    above = []
    for name, label in labels.items():
        gains = [(column.label, _gain(column, name, "random", contrasts)) for column in coherence]
        if better := [column for column, gain in gains if gain is not None and gain.low > 0]:
            above.append(f"{label} in {', '.join(better)}")
    tested = f"{', '.join(labels.values())} against random pairing"
    return [
        f"{tested}: {'significantly above it: ' + '; '.join(above) if above else 'none is significantly above it'}."
    ]


def _standing(
    columns: Sequence[Column], rows: Sequence[Row], contrasts: Contrasts
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Where each model stands between random pairing and the truth, in the informative columns of coherence."""
    names = {row.system for row in rows}
    top = next((name for name in (*CODECS, "ground_truth") if name in names), None)
    labels = {row.system: row.label for row in rows}
    verdicts: list[str] = []
    positions: dict[str, dict[str, Any]] = {}
    if top is None or "random" not in names:
        return verdicts, positions
    for name in (name for name in labels if name in MODELS or name.startswith(MODEL_PREFIX)):
        parts = []
        for column in columns:
            if not column.informative or column.key.startswith(DISTANCES):
                continue
            place = contrasts.position(column.key, name, "random", top)
            if place is None:
                continue
            positions.setdefault(name, {})[column.key] = {"value": place.value, "low": place.low, "high": place.high}
            text = f"{column.label} {100 * place.value:.0f} %"
            if place.low is not None and place.high is not None:
                text += f" [{100 * place.low:.0f}, {100 * place.high:.0f}]"
            parts.append(text)
        if parts:
            verdicts.append(f"{labels[name]}, from random pairing (0 %) to {labels[top]} (100 %): {', '.join(parts)}.")
        else:
            verdicts.append(
                f"{labels[name]}: no column of coherence is informative on these clips; nothing can be said."
            )
    return verdicts, positions
