"""The token table of the card: each stage's predictions on held-out clips, in all and for each codebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hafm_lightning.evaluation.card.card import Column, Row, Table, Value
from hafm_lightning.evaluation.intervals import bootstrap_interval, paired_difference_interval
from hafm_lightning.evaluation.systems.band import ModelSource
from hafm_lightning.evaluation.token_scores.scores import (
    ClipTokenScores,
    has_vocal,
    score_clips,
    vocal_streams,
)
from hafm_lightning.modeling.token_model import TokenModel
from hafm_lightning.modeling.token_scores import other_song, without_conditions
from hafm_lightning.processes.pool import LocalPool, SerialPool
from hafm_lightning.progress import progress
from hafm_lightning.tokenizers import load_tokenizers
from hafm_lightning.tokens import COARSE_CODEBOOKS, TokenBatch

Unit = tuple[str, TokenBatch]
"""A stage's name, and clips with the conditions that it is scored with."""

_COLUMNS = (
    Column("loss", "CE", "lower", "Cross-entropy in nats with true conditions, mean over codebooks."),
    Column("perplexity", "perplexity", "lower", "exp(CE).", 1),
    Column("accuracy", "top-1", "higher", "Share of tokens at which the true token ranks first."),
    Column("accuracy_top10", "top-10", "higher", "Share of tokens at which the true token is among the first ten."),
    Column(
        "conditioning_gain", "CE(null) − CE", "higher", "Loss without conditions minus loss: the conditions' worth."
    ),
    Column(
        "other_clip_gap",
        "CE(other vocal) − CE",
        "higher",
        "Loss with the vocal of another song (all conditions, for a stage without the vocal) minus loss: above 0 where "
        "the stage uses its vocal.",
    ),
    Column("other_song_gap", "CE(other song) − CE", "higher", "Loss with all conditions of another song minus loss."),
)


def token_columns(codebooks: int) -> list[Column]:
    """Columns in all, and cross-entropy and top-1 of each codebook."""
    columns = list(_COLUMNS)
    for k in range(codebooks):
        columns.append(Column(f"loss_q{k}", f"CE q{k}", "lower", f"Cross-entropy of the target's codebook {k}, nats."))
        columns.append(Column(f"accuracy_q{k}", f"top-1 q{k}", "higher", f"Top-1 accuracy of codebook {k}."))
    return columns


@dataclass(frozen=True)
class RemoteScores:
    """Scores clips in a worker process, which loads the model at its first call.

    Attributes:
        source: The model.
    """

    source: ModelSource

    def __call__(self, unit: Unit) -> ClipTokenScores:
        """Scores of one stage."""
        name, clips = unit
        return score_clips(_networks(self)[name], clips)


@lru_cache(maxsize=1)
def _networks(remote: RemoteScores) -> dict[str, TokenModel]:
    band = remote.source.load(load_tokenizers(remote.source.tokenizers))
    return {network.role: network.model for network in band.networks}


def token_table(
    networks: Mapping[str, TokenModel],
    batch: TokenBatch,
    songs: list[str],
    about: list[str],
    pool: LocalPool | None = None,
    remote: Callable[[Unit], ClipTokenScores] | None = None,
) -> Table:
    """Score every stage on the clips of ``batch``.

    Args:
        networks: Stage name -> network in eval mode.
        batch: Tokens of clips of at least two songs.
        songs: The song of each clip.
        about: Lines on the origin of the clips.
        pool: Processes that score; None for this one.
        remote: Scores in these processes.
    """
    units: dict[tuple[str, str], Unit] = {}
    for name, model in networks.items():
        variants = {
            "true": batch.streams,
            "null": without_conditions(batch, model.layout.conditions),
            "other": other_song(batch, vocal_streams(model)),
        }
        if set(vocal_streams(model)) != set(model.layout.conditions):
            variants["other_song"] = other_song(batch, model.layout.conditions)
        units |= {(name, kind): (name, TokenBatch(streams, batch.clip_ids)) for kind, streams in variants.items()}
    if pool is None or pool.processes == 1 or remote is None:
        pool, remote = SerialPool(), lambda unit: score_clips(networks[unit[0]], unit[1])
    names = list(units)
    scores: dict[tuple[str, str], ClipTokenScores] = {}
    with progress("Measuring conditioning gain", total=len(units), unit="passes") as bar:
        for index, result in pool.map(remote, list(units.values())):
            scores[names[index]] = result
            bar.advance()
    columns = token_columns(COARSE_CODEBOOKS)
    rows = []
    for name, model in networks.items():
        cells = _cells({kind: found for (stage, kind), found in scores.items() if stage == name}, songs)
        absent = Value(None, note="the target has one codebook")
        values = {column.key: cells.get(column.key, absent) for column in columns}
        rows.append(Row(name, name, len(batch), 0, {}, {"hears_vocal": has_vocal(model)}, values))
    return Table("tokens", about, columns, rows, unit="stage")


def _cells(scores: Mapping[str, ClipTokenScores], songs: list[str]) -> dict[str, Value]:
    true, other = scores["true"], scores["other"].losses
    loss = _mean(true.losses, songs)
    assert loss.value is not None
    assert loss.low is not None
    assert loss.high is not None
    cells = {
        "loss": loss,
        "perplexity": Value(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high)),
        "accuracy": _mean(true.accuracy.mean(axis=1), songs),
        "accuracy_top10": _mean(true.accuracy_top10.mean(axis=1), songs),
        "conditioning_gain": _gap(scores["null"].losses, true.losses, songs),
        "other_clip_gap": _gap(other, true.losses, songs),
        "other_song_gap": _gap(scores["other_song"].losses if "other_song" in scores else other, true.losses, songs),
    }
    codebooks = true.cross_entropy.shape[1]
    for k in range(codebooks if codebooks > 1 else 0):
        cells[f"loss_q{k}"] = _mean(true.cross_entropy[:, k], songs)
        cells[f"accuracy_q{k}"] = _mean(true.accuracy[:, k], songs)
    return cells


def _mean(values: npt.NDArray[np.float64], songs: list[str]) -> Value:
    interval = bootstrap_interval(values, groups=songs)
    return Value(interval.mean, interval.low, interval.high)


def _gap(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], songs: list[str]) -> Value:
    interval = paired_difference_interval(first, second, groups=songs)
    return Value(interval.mean, interval.low, interval.high)
