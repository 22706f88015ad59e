"""The token table of the card: each stage's predictions on held-out clips, in all and for each codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.card.card import Column, Row, Table, Value
from hafm_lightning.evaluation.intervals import mean_interval, paired_difference_interval
from hafm_lightning.evaluation.systems.band import ModelSource, worker_model
from hafm_lightning.evaluation.token_scores.scores import ClipTokenScores, score_clips, vocal_conditions
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import other_song, without_conditions
from hafm_lightning.processes.pool import LocalPool
from hafm_lightning.progress import progress
from hafm_lightning.tokens import COARSE_CODEBOOKS, TokenBatch

_NULL_NOTE = "Loss without conditions minus loss: the conditions' worth."
_VOCAL_NOTE = (
    "Loss with the vocal of another song, and the other conditions true, minus loss: above 0 where the stage uses the "
    "vocal itself (in training: val/other_vocal_gap)."
)
_SONG_NOTE = (
    "Loss with all conditions of another song minus loss: above 0 where the stage follows its conditions (in training: "
    "val/other_song_gap)."
)
_COLUMNS = (
    Column("loss", "CE", "lower", "Cross-entropy in nats with true conditions, mean over codebooks."),
    Column("perplexity", "perplexity", "lower", "exp(CE).", 1),
    Column("accuracy", "top-1", "higher", "Share of tokens at which the true token ranks first."),
    Column("accuracy_top10", "top-10", "higher", "Share of tokens at which the true token is among the first ten."),
    Column("conditioning_gain", "CE(null) − CE", "higher", _NULL_NOTE),
    Column("other_vocal_gap", "CE(other vocal) − CE", "higher", _VOCAL_NOTE),
    Column("other_song_gap", "CE(other song) − CE", "higher", _SONG_NOTE),
)


def token_table(
    networks: Mapping[str, TokenModel],
    batch: TokenBatch,
    songs: list[str],
    about: list[str],
    pool: LocalPool,
    source: ModelSource,
) -> Table:
    """Score every stage on the clips of ``batch``, which are of at least two ``songs``.

    Args:
        networks: Stage name -> network in eval mode; processes of ``pool`` load them from ``source``.
        about: Lines on the origin of the clips.
    """
    units: dict[tuple[str, str], TokenBatch] = {}
    for name, model in networks.items():
        conditions = model.layout.conditions
        variants = {
            "true": batch.streams,
            "null": without_conditions(batch, conditions),
            "other_song": other_song(batch, conditions),
        }
        vocal = vocal_conditions(model)
        if vocal and len(vocal) < len(conditions):
            variants["other_vocal"] = other_song(batch, vocal)
        units |= {(name, kind): TokenBatch(streams, batch.clip_ids) for kind, streams in variants.items()}
    score_unit = partial(_score_unit, networks if pool.processes == 1 else source)
    names = list(units)
    scores: dict[tuple[str, str], ClipTokenScores] = {}
    with progress("Measuring conditioning gain", total=len(units), unit="passes") as bar:
        for index, result in pool.map(score_unit, [(name, clips) for (name, _), clips in units.items()]):
            scores[names[index]] = result
            bar.advance()
    columns = list(_COLUMNS)
    for k in range(COARSE_CODEBOOKS):
        columns.append(Column(f"loss_q{k}", f"CE q{k}", "lower", f"Cross-entropy of the target's codebook {k}, nats."))
        columns.append(Column(f"accuracy_q{k}", f"top-1 q{k}", "higher", f"Top-1 accuracy of codebook {k}."))
    rows = []
    for name, model in networks.items():
        cells = _cells({kind: result for (stage, kind), result in scores.items() if stage == name}, songs)
        if not vocal_conditions(model):
            cells["other_vocal_gap"] = Value(None, note="the stage has no vocal among its conditions")
        absent = Value(None, note="the target has one codebook")
        values = {column.key: cells.get(column.key, absent) for column in columns}
        rows.append(Row(name, name, len(batch), 0, {}, {"hears_vocal": bool(vocal_conditions(model))}, values))
    return Table("tokens", about, columns, rows, unit="stage")


def _score_unit(networks: Mapping[str, TokenModel] | ModelSource, unit: tuple[str, TokenBatch]) -> ClipTokenScores:
    """Scores of one stage's clips; may run in a worker process, which loads the networks at its first call."""
    if isinstance(networks, ModelSource):
        networks = {network.role: network.model for network in worker_model(networks).networks}
    return score_clips(networks[unit[0]], unit[1])


def _cells(scores: Mapping[str, ClipTokenScores], songs: list[str]) -> dict[str, Value]:
    def mean(values: npt.NDArray[np.float64]) -> Value:
        return Value.of(mean_interval(values, groups=songs, bounds=(0.0, math.inf)))

    true = scores["true"]
    loss = mean_interval(true.losses, groups=songs, bounds=(0.0, math.inf))
    cells = {
        "loss": Value.of(loss),
        "perplexity": Value(math.exp(loss.mean), math.exp(loss.low), math.exp(loss.high)),
        "accuracy": mean(true.accuracy.mean(axis=1)),
        "accuracy_top10": mean(true.accuracy_top10.mean(axis=1)),
    }
    # where the vocal is the only condition, all conditions are the vocal
    changed = {"conditioning_gain": "null", "other_vocal_gap": "other_vocal", "other_song_gap": "other_song"}
    for key, kind in changed.items():
        losses = scores.get(kind, scores["other_song"]).losses
        cells[key] = Value.of(paired_difference_interval(losses, true.losses, groups=songs))
    codebooks = true.cross_entropy.shape[1]
    for k in range(codebooks if codebooks > 1 else 0):
        cells[f"loss_q{k}"], cells[f"accuracy_q{k}"] = mean(true.cross_entropy[:, k]), mean(true.accuracy[:, k])
    return cells
