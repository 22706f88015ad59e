"""Trace of the square root of a product of two covariances: what the Frechet distance spends its time on.

Symmetric matrices are handed to LAPACK as their transposes, which need no reordering.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_LAPACK_BLOCK = 8
"""Columns that LAPACK reduces at once."""


class CovarianceFactor(NamedTuple):
    """``F [d, d]`` with ``covariance = F F^T``.

    Attributes:
        matrix: ``F``, float64.
        triangular: Whether it is lower triangular, as it is at full rank.
    """

    matrix: Float64Array
    triangular: bool


def factor_of(covariance: Float64Array) -> CovarianceFactor:
    """Cholesky's factor of a covariance ``[d, d]`` of full rank, else its eigenvectors by the roots of its values."""
    from scipy.linalg import lapack

    triangle, failed = lapack.dpotrf(covariance.T, lower=1, clean=1)
    if not failed:
        return CovarianceFactor(triangle, True)
    values, vectors = np.linalg.eigh(covariance)
    return CovarianceFactor(np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=np.float64), False)


def trace_of_root(covariance: Float64Array, factor: CovarianceFactor) -> float:
    """``tr (C F F^T)^1/2`` of a covariance ``C [d, d]`` and the factor of another; both may be singular."""
    from scipy.linalg import blas

    if factor.triangular:
        inner = blas.dtrmm(1.0, factor.matrix, covariance.T, side=1, lower=1)
        inner = blas.dtrmm(1.0, factor.matrix, inner, side=0, lower=1, trans_a=1, overwrite_b=1)
    else:
        inner = factor.matrix.T @ covariance @ factor.matrix
    return float(np.sqrt(np.maximum(_symmetric_eigenvalues(inner), 0.0)).sum())


def _symmetric_eigenvalues(matrix: Float64Array) -> Float64Array:
    """Eigenvalues ``[d]`` of a symmetric ``[d, d]`` matrix, of which the lower triangle is read.

    These are the two steps inside LAPACK's drivers, without their scaling, their checks and their copies.
    """
    from scipy.linalg import lapack

    if len(matrix) == 1:
        return np.asarray(matrix[0], dtype=np.float64)
    _, diagonal, beside, _, _ = lapack.dsytrd(matrix, lower=1, lwork=_LAPACK_BLOCK * len(matrix))
    values, failed = lapack.dsterf(diagonal, beside)
    return np.asarray(np.linalg.eigvalsh(matrix) if failed else values, dtype=np.float64)
