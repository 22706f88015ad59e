"""Kernel distance (KD): unbiased squared maximum mean discrepancy between two sets of embedding rows.

With the polynomial kernel ``k(x, y) = (x . y / d + 1)^3``, KD needs no covariance and has no bias at any number of
rows, so it is steadier than FAD on small sets. It may be slightly negative for equal distributions: that is what
unbiased means, and it is not clamped.

Source: Binkowski et al., *Demystifying MMD GANs* (arXiv 1801.01401), applied to embeddings of music.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 2048
"""Rows of a kernel block held in memory at once (2048 x 2048 float64 = 34 MB)."""
DEGREE = 3


def kernel_distance(generated: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Unbiased squared MMD between ``generated [n, d]`` and ``reference [m, d]``, float64 throughout.

    Raises:
        ValueError: The widths differ, a set has fewer than 2 rows, or values are not finite.
    """
    x, y = np.asarray(generated, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected rows of one width, got shapes {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"KD needs at least 2 rows on each side, got {len(x)} and {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("embedding rows hold NaN or infinite values")
    return _mean_within(x) + _mean_within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _mean_within(x: npt.NDArray[np.float64]) -> float:
    """Mean of the kernel over the pairs of different rows of ``x [n, d]``."""
    diagonal = (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1.0) ** DEGREE
    return (_kernel_sum(x, x) - float(diagonal.sum())) / (len(x) * (len(x) - 1))


def _kernel_sum(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Sum of the polynomial kernel over all pairs of rows of ``x [n, d]`` and ``y [m, d]``."""
    total = 0.0
    for i in range(0, len(x), BLOCK_ROWS):
        for j in range(0, len(y), BLOCK_ROWS):
            block = x[i : i + BLOCK_ROWS] @ y[j : j + BLOCK_ROWS].T / x.shape[1] + 1.0
            total += float((block**DEGREE).sum())
    return total
