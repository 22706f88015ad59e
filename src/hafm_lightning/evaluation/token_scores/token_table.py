"""The token table of the card: what each stage predicts of held-out clips, in all and for each codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.card.card import Column, Row, Table, Value
from hafm_lightning.evaluation.intervals import bootstrap_interval, paired_difference_interval
from hafm_lightning.evaluation.token_scores.probes import hears_vocal, score_clips, vocal_streams
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import other_song, without_conditions
from hafm_lightning.tokens import COARSE_CODEBOOKS, TokenBatch

_COLUMNS = (
    Column("loss", "CE", "lower", "Cross-entropy in nats with true conditions, mean over codebooks."),
    Column("perplexity", "perplexity", "lower", "exp(CE).", 1),
    Column("accuracy", "top-1", "higher", "How often the true token ranks first."),
    Column("accuracy_top10", "top-10", "higher", "How often the true token is among the first ten."),
    Column(
        "conditioning_gain", "CE(null) − CE", "higher", "What the conditions are worth: loss without them, less loss."
    ),
    Column(
        "other_clip_gap",
        "CE(other) − CE",
        "higher",
        "Loss with the vocal of another song (all conditions, for a stage that hears no vocal), less loss: above 0 "
        "where the stage listens.",
    ),
)


def token_columns(codebooks: int) -> list[Column]:
    """Columns in all, and cross-entropy and top-1 of each codebook."""
    columns = list(_COLUMNS)
    for k in range(codebooks):
        columns.append(Column(f"loss_q{k}", f"CE q{k}", "lower", f"Cross-entropy of the target's codebook {k}, nats."))
        columns.append(Column(f"accuracy_q{k}", f"top-1 q{k}", "higher", f"Top-1 accuracy of codebook {k}."))
    return columns


def token_table(networks: Mapping[str, TokenModel], batch: TokenBatch, songs: list[str], about: list[str]) -> Table:
    """Score every stage on the clips of ``batch``.

    Args:
        networks: Stage name -> network in eval mode.
        batch: Tokens of clips of at least two songs.
        songs: The song of each clip.
        about: Lines on where the clips come from.
    """
    columns = token_columns(COARSE_CODEBOOKS)
    rows = [
        Row(name, name, len(batch), 0, {}, {"hears_vocal": hears_vocal(model)}, _cells(model, batch, songs, columns))
        for name, model in networks.items()
    ]
    return Table("tokens", about, columns, rows, unit="stage")


def _cells(model: TokenModel, batch: TokenBatch, songs: list[str], columns: list[Column]) -> dict[str, Value]:
    scores = score_clips(model, batch)
    null = score_clips(model, batch, without_conditions(batch, model.layout.conditions)).losses
    other = score_clips(model, batch, other_song(batch, vocal_streams(model))).losses
    loss = _mean(scores.losses, songs)
    assert loss.value is not None
    assert loss.low is not None
    assert loss.high is not None
    cells = {
        "loss": loss,
        "perplexity": Value(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high)),
        "accuracy": _mean(scores.accuracy.mean(axis=1), songs),
        "accuracy_top10": _mean(scores.accuracy_top10.mean(axis=1), songs),
        "conditioning_gain": _gap(null, scores.losses, songs),
        "other_clip_gap": _gap(other, scores.losses, songs),
    }
    codebooks = scores.cross_entropy.shape[1]
    for k in range(codebooks if codebooks > 1 else 0):
        cells[f"loss_q{k}"] = _mean(scores.cross_entropy[:, k], songs)
        cells[f"accuracy_q{k}"] = _mean(scores.accuracy[:, k], songs)
    absent = Value(None, note="the target has one codebook")
    return {column.key: cells.get(column.key, absent) for column in columns}


def _mean(values: npt.NDArray[np.float64], songs: list[str]) -> Value:
    found = bootstrap_interval(values, groups=songs)
    return Value(found.mean, found.low, found.high)


def _gap(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], songs: list[str]) -> Value:
    found = paired_difference_interval(first, second, groups=songs)
    return Value(found.mean, found.low, found.high)
