"""Numbers of a whole set of clips: FAD, FAD-infinity, KD and APA of one system under one embedding."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import Audio, resample
from hafm_lightning.evaluation.distances.adherence import accompaniment_prompt_adherence, adherence_mixes
from hafm_lightning.evaluation.distances.covariance_root import Float64Array
from hafm_lightning.evaluation.distances.frechet import (
    GaussianStatistics,
    frechet_distance,
    frechet_infinity,
    moments_of,
    pooled_statistics,
)
from hafm_lightning.evaluation.distances.kernel_distance import kernel_distance
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.jackknife import SetInterval, jackknife_interval

Rows = npt.NDArray[np.float32]

KERNEL_ROWS = 4000
"""KD compares all pairs: beyond this, rows are drawn (seeded, without replacement)."""


@dataclass(frozen=True)
class Reference:
    """The set that generated clips are compared with.

    Attributes:
        name: What it is, for the card.
        statistics: For FAD.
        rows: For KD; None where only a statistics file is given.
    """

    name: str
    statistics: GaussianStatistics
    rows: Rows | None = None


def clip_rows(embedding: Embedding, samples: npt.NDArray[np.float32], rate_hz: int) -> Rows:
    """Rows of one clip ``[L]`` at ``rate_hz``."""
    return embedding.rows(resample(samples, rate_hz, embedding.rate_hz))


def fad_of(rows: Sequence[Rows], songs: Sequence[Hashable], reference: Reference) -> SetInterval:
    """FAD of clips (rows of each) to the reference, with its interval over songs."""
    moments: list[Float64Array] = [moments_of(clip) for clip in rows]

    def distance(kept: list[int]) -> float:
        return frechet_distance(pooled_statistics([moments[index] for index in kept]), reference.statistics)

    return jackknife_interval(distance, songs, minimum=0.0)


def fad_infinity_of(rows: Sequence[Rows], reference: Reference, seed: int) -> tuple[float, bool] | None:
    """FAD-infinity, and whether it can be relied on; None with fewer than 4 rows."""
    together = np.concatenate(rows)
    if len(together) < 4:
        return None
    found = frechet_infinity(together, reference.statistics, seed=seed)
    return found.value, found.reliable


def kd_of(rows: Sequence[Rows], songs: Sequence[Hashable], reference: Reference, seed: int) -> SetInterval | None:
    """KD of clips to the reference, with its interval over songs; None without the reference's rows."""
    if reference.rows is None:
        return None
    true = thinned(reference.rows, seed)
    share = min(1.0, KERNEL_ROWS / sum(len(clip) for clip in rows))
    kept_rows = [thinned(clip, seed, max(1, round(share * len(clip)))) for clip in rows]

    def distance(kept: list[int]) -> float:
        return kernel_distance(np.concatenate([kept_rows[index] for index in kept]), true)

    return jackknife_interval(distance, songs)


def thinned(rows: Rows, seed: int, limit: int = KERNEL_ROWS) -> Rows:
    """At most ``limit`` of the rows, drawn without replacement."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]


def adherence_rows(
    embedding: Embedding, vocal: npt.NDArray[np.float32], accompaniment: npt.NDArray[np.float32], rate_hz: int
) -> Rows:
    """Rows of a clip's 5 s mixes as APA wants them; ValueError for a clip under 5 s."""
    mixes = adherence_mixes(Audio(vocal[None], rate_hz), Audio(accompaniment[None], rate_hz))
    return embedding.rows([resample(mixed, rate_hz, embedding.rate_hz) for mixed in mixes])


def apa_of(
    candidate: Sequence[Rows], true: Sequence[Rows], swapped: Sequence[Rows], songs: Sequence[Hashable]
) -> SetInterval:
    """APA of clips (rows of their mixes), with its interval over songs."""

    def adherence(kept: list[int]) -> float:
        sets = (np.concatenate([part[index] for index in kept]) for part in (true, swapped, candidate))
        true_rows, swapped_rows, candidate_rows = sets
        return accompaniment_prompt_adherence(true_rows, swapped_rows, candidate_rows)

    found = jackknife_interval(adherence, songs, minimum=0.0)
    high = None if found.high is None else min(1.0, found.high)
    return SetInterval(found.value, found.low, high, found.groups)
