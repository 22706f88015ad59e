"""Accompaniment prompt adherence (APA): does a set of accompaniments belong to its vocals?

Mixes of vocal and accompaniment are embedded. Three sets of mixes are compared: true pairs R, the same vocals with
accompaniments of other songs R', and the vocals with candidates C. With a distance d between sets,

    APA = 1/2 + (d(C, R') - d(C, R)) / (2 max(|d(C, R') - d(C, R)|, d(R, R')))

is 1 where the candidates are as near to the true pairs as can be, 0 where they are like random pairs. It looks along
the direction in which mixes change when a vocal meets another song's accompaniment. A plain sound embedding also moves
in that direction when the candidates merely sound unlike real playing: read APA beside the codec's ceilings.

Source: Grachten and Nistal, arXiv 2503.06346, written from its formulas. As there: windows of 5 s, the accompaniment at
the vocal's BS.1770 loudness, the mix at -20 LUFS, distances clamped at 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import Audio, Samples, loudness_lufs
from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance

Rows = npt.NDArray[np.float64]
Distance = Callable[[Rows, Rows], float]

WINDOW_S = 5.0
MIX_LUFS = -20.0


def frechet_of_rows(first: Rows, second: Rows) -> float:
    """Frechet distance of two sets of embedding rows ``[n, d]`` and ``[m, d]``."""
    return frechet_distance(GaussianStatistics.from_rows(first), GaussianStatistics.from_rows(second))


def accompaniment_prompt_adherence(
    true_rows: npt.ArrayLike,
    swapped_rows: npt.ArrayLike,
    candidate_rows: npt.ArrayLike,
    *,
    distance: Distance = frechet_of_rows,
) -> float:
    """APA of a set of candidates: 0 to 1; 0.5 where they are as far from true pairs as from swapped ones.

    Args:
        true_rows: Embeddings of vocals with their own accompaniments, R: ``[n, d]``.
        swapped_rows: Of the same vocals with accompaniments of other songs, R': ``[m, d]``.
        candidate_rows: Of the vocals with the candidates, C: ``[k, d]``.
        distance: Between two sets of rows; negative values (an unbiased estimate may be) count as 0.

    Raises:
        ValueError: The widths differ or a distance is not finite.
    """
    sets = [np.asarray(rows, dtype=np.float64) for rows in (true_rows, swapped_rows, candidate_rows)]
    if any(rows.ndim != 2 or rows.shape[1] != sets[0].shape[1] for rows in sets):
        raise ValueError(f"expected rows [n, d] of one width, got shapes {[rows.shape for rows in sets]}")
    true, swapped, candidate = sets
    pairs = ((candidate, swapped), (candidate, true), (true, swapped))
    distances = [float(distance(first, second)) for first, second in pairs]
    if not all(map(math.isfinite, distances)):
        raise ValueError(f"a distance is not finite: {distances} for C to R', C to R, R to R'")
    to_swapped, to_true, between = (max(0.0, value) for value in distances)
    gain = to_swapped - to_true
    scale = max(abs(gain), between)
    return 0.5 + gain / (2 * scale) if scale > 0 else 0.5


def adherence_mixes(vocal: Audio, accompaniment: Audio) -> list[Samples]:
    """Windows of vocal + accompaniment, levelled as APA wants them: mono float32 ``[5 s * rate]``, as many as fit.

    Peaks may pass full scale: the windows are for embedding, not for listening.

    Raises:
        ValueError: The two differ in rate or length, or not even one window fits.
    """
    if (vocal.rate_hz, vocal.samples.shape[1]) != (accompaniment.rate_hz, accompaniment.samples.shape[1]):
        raise ValueError(
            f"expected one rate and length, got {vocal.rate_hz} Hz x {vocal.samples.shape[1]} and "
            f"{accompaniment.rate_hz} Hz x {accompaniment.samples.shape[1]}"
        )
    length = round(WINDOW_S * vocal.rate_hz)
    starts = range(0, vocal.samples.shape[1] - length + 1, length)
    if not starts:
        raise ValueError(f"{vocal.duration_s:.3f} s hold no window of {WINDOW_S} s")
    windows = []
    for start in starts:
        context, stem = (
            Audio(audio.mono().samples[:, start : start + length], audio.rate_hz) for audio in (vocal, accompaniment)
        )
        together = context.samples + _gain(loudness_lufs(stem), loudness_lufs(context)) * stem.samples
        level = _gain(loudness_lufs(Audio(together, vocal.rate_hz)), MIX_LUFS)
        windows.append((level * together)[0])
    return windows


def _gain(from_lufs: float, to_lufs: float) -> np.float32:
    """Factor between two loudnesses; 1 where one of them is silence."""
    difference_db = to_lufs - from_lufs
    return np.float32(10 ** (difference_db / 20) if math.isfinite(difference_db) else 1.0)


def random_partners(songs: Sequence[Hashable], seed: int) -> list[int]:
    """Random pairing: for each clip the index of one of a different song, each used once where that is possible.

    Raises:
        ValueError: All clips are of one song.
    """
    if len(set(songs)) < 2:
        raise ValueError("random pairing needs clips of at least two songs")
    draw = np.random.default_rng(seed)
    # Clips sorted by song and shifted by the size of the largest song never meet their own song, unless that song
    # holds more than half of the clips.
    order = draw.permutation(len(songs))
    rank_of = {song: rank for rank, song in enumerate(dict.fromkeys(songs[index] for index in order))}
    order = np.array(sorted(order, key=lambda index: rank_of[songs[index]]))
    largest = max(Counter(songs).values())
    shift = int(draw.integers(largest, max(len(songs) - largest, largest) + 1))
    partners = [0] * len(songs)
    for index, partner in zip(order, np.roll(order, -shift), strict=True):
        if songs[partner] == songs[index]:
            others = [other for other in range(len(songs)) if songs[other] != songs[index]]
            partner = others[int(draw.integers(len(others)))]
        partners[index] = int(partner)
    return partners
