"""The columns of a card and their definitions; docs/evaluation.md has the details."""

from __future__ import annotations

from collections.abc import Sequence

from hafm_lightning.evaluation.card.card import Column, Value
from hafm_lightning.evaluation.coherence.scores import TOY_METRICS

Cells = dict[Column, dict[str, Value]]
"""Column -> system -> cell, in the order of the card."""

_GROUPS = {
    "beats": ("beat_f_measure", "beat_cmlt", "beat_amlt", "beats_found"),
    "chroma": ("chroma_cosine",),
    "key": ("key_score",),
    "onsets": ("onset_f1", "onset_f1_reference"),
    "truth": TOY_METRICS,
}
"""Group of columns -> its scores."""
_BOUNDS = {"beat_phase": (-1.0, 1.0)}
LOST = Column("lost", "silent or noise", "", "Share of clips that are silent or noise: they score the worst value.")
_CLIP_COLUMNS = {
    "beat_f_measure": ("beats F", "F-measure (70 ms) of the beats of vocal + accompaniment against those of the song."),
    "beat_cmlt": ("beats CMLt", "Share of beats in correct, continuous stretches at the song's own metrical level."),
    "beat_amlt": ("beats AMLt", "As CMLt, also at double or half tempo and off the beat."),
    "beats_found": ("beats found", "Share of clips in which beats were found at all; the others score 0 above."),
    "chroma_cosine": ("chroma", "Cosine of chroma frames of the sung vocal and the accompaniment."),
    "key_score": ("key", "MIREX score of the accompaniment's key against the song's (Krumhansl-Kessler)."),
    "onset_f1": ("onsets, vocal", "F1 (50 ms) of the accompaniment's onsets against the vocal's."),
    "onset_f1_reference": ("onsets, truth", "F1 (50 ms) against the onsets of the true accompaniment."),
    "chord_accuracy": ("chords", "Share of the sung time in which the accompaniment's triad is the known chord."),
    "chord_root_accuracy": ("chord roots", "As chords, root only."),
    "beat_phase": ("beat phase", "Mean cosine of its beats on the known grid: 1 on it, -1 half a beat off."),
}


def clip_columns(metrics: Sequence[str]) -> list[Column]:
    """Columns of the clip scores in the requested groups, larger is better in all of them, and the share of clips that
    mean nothing to them."""
    keys = [key for group, keys in _GROUPS.items() if group in metrics for key in keys]
    columns = [Column(key, _CLIP_COLUMNS[key][0], "higher", _CLIP_COLUMNS[key][1]) for key in keys]
    return [*columns, LOST] if columns else []


def bounds_of(column: Column) -> tuple[float, float]:
    """Least and greatest value of a clip's score."""
    return _BOUNDS.get(column.key, (0.0, 1.0))


def set_columns(name: str, metrics: Sequence[str]) -> dict[str, Column]:
    """Columns of the embedding ``name``: ``fad``, ``fad_infinity``, ``kd``, ``apa``, where they are requested."""
    columns = {}
    if "fad" in metrics:
        note = (
            f"Frechet distance of {name} rows to the reference. It compares sound, not whether the vocal is followed. "
            "Interval: jackknife over songs; it does not include the bias of few rows."
        )
        columns["fad"] = Column(f"fad_{name}", f"FAD {name}", "lower", note)
        note = "FAD at several numbers of rows, extrapolated along 1/n to infinitely many; needs 4 rows a dimension."
        columns["fad_infinity"] = Column(f"fad_infinity_{name}", f"FAD∞ {name}", "lower", note)
    if "kd" in metrics:
        note = "Unbiased squared MMD with a cubic kernel on the same rows; it may be below 0 for equal sets."
        columns["kd"] = Column(f"kd_{name}", f"KD {name}", "lower", note, 5)
    if "apa" in metrics:
        note = (
            "Accompaniment prompt adherence (arXiv 2503.06346) on 5 s mixes: 1 like true pairs, 0 like random ones. "
            "Silence and noise count as random pairs."
        )
        columns["apa"] = Column(f"apa_{name}", f"APA {name}", "higher", note)
    return columns


def speed_columns(batch_clips: int, processes: int) -> tuple[Column, Column]:
    """Real-time factor and peak memory."""
    together = f", {batch_clips} clips at once" if batch_clips > 1 else ""
    together += f", {processes} processes side by side" if processes > 1 else ""
    factor = f"Seconds of computing for a second of music{together}; below 1 is faster than real time."
    memory = "Peak: of the GPU's tensors, or of the whole process where there is none."
    return (
        Column("real_time_factor", "RTF", "lower", factor),
        Column("peak_memory_mib", "memory, MiB", "lower", memory, 0),
    )
