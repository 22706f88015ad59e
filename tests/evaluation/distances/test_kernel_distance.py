"""KD against its naive sums, and its lack of bias."""

from __future__ import annotations

import numpy as np
import pytest

from hafm_lightning.evaluation.distances.frechet import (
    GaussianStatistics,
    frechet_distance,
)
from hafm_lightning.evaluation.distances.kernel_distance import kernel_distance


def random_rows(n: int, d: int, seed: int, offset: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Correlated Gaussian rows; all seeds share the correlation, so that sets resemble one another."""
    mixing = np.random.default_rng(99).standard_normal((d, d)) / d**0.5
    return np.random.default_rng(seed).standard_normal((n, d)) @ mixing * scale + offset


def distance_of(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(GaussianStatistics.from_rows(x), GaussianStatistics.from_rows(y))


def test_kernel_distance_equals_the_naive_sums() -> None:
    x, y = random_rows(7, 3, 22), random_rows(5, 3, 23, offset=0.5)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(a * b) / 3 + 1) ** 3)

    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_kernel_distance_is_unbiased_where_fad_is_not() -> None:
    values = [kernel_distance(random_rows(40, 8, 2 * s), random_rows(40, 8, 2 * s + 1)) for s in range(60)]
    standard_error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert min(values) < 0 < max(values)
    assert np.mean([distance_of(random_rows(40, 8, 2 * s), random_rows(40, 8, 2 * s + 1)) for s in range(60)]) > 0.3
