"""Frechet audio distance (FAD): Gaussian statistics of embedding rows, their files, the distance, the metric.

FAD compares two sets of embedding rows by the Frechet distance of the Gaussians fitted to them::

    |mu_x - mu_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^1/2)

Choices:

* The last trace is the sum of the square roots of the eigenvalues of ``F^T C_y F`` for any factor ``C_x = F F^T``:
  Cholesky's where the covariance has full rank, else the symmetric square root. One symmetric eigenproblem replaces a
  general matrix square root; it stays real, and exact to rounding, where the covariances are rank-deficient and
  ``scipy.linalg.sqrtm`` drifts into complex numbers. Only eigenvalues are computed, by LAPACK's own steps, which
  get symmetric matrices as transposes.
* Everything is float64. A set is stored as *moments* ``[d + 2, d]`` (count, mean, scatter about the mean), and two
  parts of a set are merged about their common mean (Chan, Golub and LeVeque, 1979). Rows far from zero lose no
  digits, and the number is the same, to rounding, on 1 and on N processes and in any order of batches.
* Covariances divide by ``n - 1``, as the published tools do.
* FAD is biased upwards by about 1/n. Under ``2 d`` rows a :class:`RankWarning` is given, and
  :func:`frechet_infinity` extrapolates the bias away.

Sources: Kilgour et al., *Frechet Audio Distance* (arXiv 1812.08466); Chong and Forsyth, *Effectively unbiased FID*
(arXiv 1911.07023) and Gui et al., *Adapting FAD for generative music evaluation* (arXiv 2311.01616) for the
extrapolation.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from hafm_lightning.errors import RequestError
from hafm_lightning.files import write_atomic

Float64Array = npt.NDArray[np.float64]

STATISTICS_FORMAT = 1
"""Version of the ``.npz`` layout; files of a newer one are refused."""
BLOCK_ROWS = 1024
"""Rows taken at once when moments are formed."""
IDENTITY_KEY = "embedding_identity"
"""Key of the provenance for the identity of the embedding (weights, layer, framing) that made the rows."""
_LAPACK_BLOCK = 8
"""Columns that LAPACK reduces at once."""


class RankWarning(UserWarning):
    """Fewer rows than twice the dimensions: covariance nearly singular, FAD biased upwards."""


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

    These are the two steps inside LAPACK's drivers, without their scaling, checks and copies."""
    from scipy.linalg import lapack

    if len(matrix) == 1:
        return np.asarray(matrix[0], dtype=np.float64)
    _, diagonal, beside, _, _ = lapack.dsytrd(matrix, lower=1, lwork=_LAPACK_BLOCK * len(matrix))
    values, failed = lapack.dsterf(diagonal, beside)
    return np.asarray(np.linalg.eigvalsh(matrix) if failed else values, dtype=np.float64)


@dataclass(frozen=True)
class GaussianStatistics:
    """Count, mean and covariance of a set of embedding rows.

    Attributes:
        rows: Number of rows, at least 2.
        mean: Mean of the rows, float64 ``[d]``.
        covariance: Covariance with divisor ``rows - 1``, float64 ``[d, d]``.
        provenance: Origin of the rows (embedding, identity, clips, seconds a clip, set): JSON values only.
    """

    rows: int
    mean: Float64Array
    covariance: Float64Array
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        d = self.mean.shape[-1] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (d, d):
            raise ValueError(
                f"mean {self.mean.shape} and covariance {self.covariance.shape} do not fit: expected [d] and [d, d]"
            )
        if self.rows < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.rows}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("statistics hold NaN or infinite values")

    @property
    def dimensions(self) -> int:
        """Width ``d`` of the rows."""
        return int(self.mean.shape[0])

    @cached_property
    def factor(self) -> CovarianceFactor:
        """A factor of the covariance; cached, since a reference set is compared with many others."""
        return factor_of(self.covariance)

    @staticmethod
    def from_rows(rows: npt.ArrayLike, provenance: Mapping[str, Any] | None = None) -> GaussianStatistics:
        """Statistics of ``rows [n, d]``."""
        return statistics_of(moments_of(rows), provenance)

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` without pickles, atomically: format, rows, mean, covariance, provenance (JSON text)."""
        content = io.BytesIO()
        np.savez(
            content,
            format=np.int64(STATISTICS_FORMAT),
            rows=np.int64(self.rows),
            mean=self.mean,
            covariance=self.covariance,
            provenance=np.str_(json.dumps(dict(self.provenance), sort_keys=True)),
        )
        write_atomic(Path(path), content.getvalue())

    @staticmethod
    def load(path: str | Path) -> GaussianStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            RequestError: The file is missing, is not such an archive, holds pickles, or is of a newer format.
        """
        source = Path(path)
        if not source.is_file():
            raise RequestError(f"no statistics file {source}; write one with GaussianStatistics.save")
        try:
            with np.load(source, allow_pickle=False) as archive:
                version = int(archive["format"])
                if version <= STATISTICS_FORMAT:
                    mean, covariance = (np.asarray(archive[key], dtype=np.float64) for key in ("mean", "covariance"))
                    provenance = json.loads(str(archive["provenance"]))
                    return GaussianStatistics(int(archive["rows"]), mean, covariance, provenance)
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise RequestError(f"{source}: not a statistics file ({error}); compute it again") from error
        raise RequestError(
            f"{source}: statistics of format {version}; this version reads up to {STATISTICS_FORMAT}: "
            "update hafm_lightning"
        )


def moments_of(rows: npt.ArrayLike) -> Float64Array:
    """Moments ``[d + 2, d]`` of ``rows [n, d]``: row 0 holds n, row 1 the mean, the rest the scatter about the mean.

    Raises:
        ValueError: The rows are not a matrix, or hold NaN or infinite values (the message counts them).
    """
    from scipy.linalg import blas

    values = np.asarray(rows)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"expected rows [n, d], got shape {values.shape}")
    n, d = values.shape
    moments = np.zeros((d + 2, d))
    if n == 0:
        return moments
    shift = values[0].astype(np.float64)
    total, upper = np.zeros(d), np.zeros((d, d), order="F")
    buffer = np.empty((min(n, BLOCK_ROWS), d))
    for start in range(0, n, BLOCK_ROWS):  # a block stays in the processor's cache
        part = values[start : start + BLOCK_ROWS]
        centred = np.subtract(part, shift, out=buffer[: len(part)])
        total += np.ones(len(part)) @ centred
        upper = blas.dsyrk(1.0, centred.T, beta=1.0, c=upper, overwrite_c=1)  # the upper triangle of the scatter
    if not np.isfinite(total).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        raise ValueError(f"{bad} of {n} embedding rows hold NaN or infinite values")
    mean = total / n
    moments[0] = n
    moments[1] = shift + mean
    moments[2:] = np.triu(upper) + np.triu(upper, 1).T - n * np.outer(mean, mean)
    return moments


def merge_moments(parts: Tensor) -> Tensor:
    """Moments of the union of several sets: ``[parts, d + 2, d]`` -> ``[d + 2, d]``; empty sets are allowed."""
    counts = parts[:, 0, 0]  # [parts]
    total = counts.sum()
    if total == 0:
        return torch.zeros_like(parts[0])
    means = parts[:, 1]  # [parts, d]
    shift = means[counts.argmax()]
    weights = (counts / total).unsqueeze(1)
    mean = shift + (weights * (means - shift)).sum(0)
    offsets = (means - mean) * counts.sqrt().unsqueeze(1)
    scatter = parts[:, 2:].sum(0) + offsets.T @ offsets
    return torch.cat((total.expand(1, len(mean)), mean.unsqueeze(0), scatter))


def statistics_of(moments: Float64Array, provenance: Mapping[str, Any] | None = None) -> GaussianStatistics:
    """Moments ``[d + 2, d]`` -> :class:`GaussianStatistics`."""
    rows = round(float(moments[0, 0]))
    if rows < 2:
        raise ValueError(f"a Frechet distance needs at least 2 embedding rows on each side, got {rows}")
    return GaussianStatistics(rows, moments[1].copy(), moments[2:] / (rows - 1), dict(provenance or {}))


def pooled_statistics(parts: Sequence[Float64Array], provenance: Mapping[str, Any] | None = None) -> GaussianStatistics:
    """Statistics of the union of sets (for example clips) given by their moments ``[d + 2, d]``."""
    return statistics_of(merge_moments(torch.from_numpy(np.stack(parts))).numpy(), provenance)


def frechet_distance(generated: GaussianStatistics, reference: GaussianStatistics) -> float:
    """Squared Frechet distance between two Gaussians, in the embedding's squared units; 0 for equal ones.

    Raises:
        ValueError: The widths differ, or the provenances name different embeddings.
    """
    if generated.dimensions != reference.dimensions:
        raise ValueError(
            f"embedding widths differ: {generated.dimensions} and {reference.dimensions}; "
            "use one embedding on both sides"
        )
    left, right = generated.provenance.get(IDENTITY_KEY), reference.provenance.get(IDENTITY_KEY)
    if left is not None and right is not None and left != right:
        raise ValueError(f"rows of different embeddings cannot be compared: {left} and {right}")
    cross = trace_of_root(generated.covariance, reference.factor)
    offset = generated.mean - reference.mean
    spread = np.trace(generated.covariance) + np.trace(reference.covariance) - 2 * cross
    return max(float(offset @ offset + spread), 0.0)


@dataclass(frozen=True)
class FrechetInfinity:
    """FAD extrapolated to infinitely many rows.

    Attributes:
        value: Intercept of the line through FAD against 1/n.
        slope: FAD gained for each unit of 1/n; about how much bias n rows carry, times n.
        r_squared: Share of the variance that the line explains; far below 1, the intercept means little.
        sizes: Numbers of rows n that were drawn.
        distances: FAD at each of them.
        reliable: False where the smallest n is under the embedding's width: 1/n is then not the law of the bias.
    """

    value: float
    slope: float
    r_squared: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    reliable: bool


def frechet_infinity(
    rows: npt.ArrayLike, reference: GaussianStatistics, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> FrechetInfinity:
    """Fit FAD against 1/n over subsets of ``rows [n, d]`` and return the intercept.

    Args:
        rows: Rows of the generated set, ``[n, d]``.
        reference: Statistics of the whole reference set.
        points: Number of subset sizes, spread evenly from ``smallest`` to n.
        smallest: Rows of the smallest subset; by default a fifth of n, but at least 2 d where that leaves a range.
        seed: Seed of the subsets, which are drawn without replacement.

    Raises:
        ValueError: Fewer than 4 rows, fewer than 2 points, or ``smallest`` outside 2..n - 1.
    """
    values = np.asarray(rows)
    n, d = values.shape
    if n < 4 or points < 2:
        raise ValueError(f"FAD-infinity needs at least 4 rows and 2 points, got {n} rows and {points} points")
    if smallest is None:
        smallest = max(2, n // 5, min(2 * d, n // 2))
    if not 2 <= smallest < n:
        raise ValueError(f"smallest subset must have 2 to {n - 1} rows, got {smallest}")
    sizes = sorted({round(size) for size in np.linspace(smallest, n, points)})
    generator = np.random.default_rng(seed)
    subsets = (GaussianStatistics.from_rows(values[generator.permutation(n)[:size]]) for size in sizes)
    distances = [frechet_distance(subset, reference) for subset in subsets]
    inverse = 1 / np.asarray(sizes, dtype=np.float64)
    slope, intercept = np.polyfit(inverse, distances, 1)
    residual = np.asarray(distances) - (intercept + slope * inverse)
    total = np.asarray(distances) - np.mean(distances)
    variance = float(total @ total)
    r_squared = 1.0 - float(residual @ residual) / variance if variance > 0 else 1.0
    return FrechetInfinity(
        float(intercept), float(slope), r_squared, tuple(sizes), tuple(distances), reliable=sizes[0] >= d
    )


class FrechetAudioDistance(Metric):
    """FAD as a torchmetrics metric: float64 moments, equal on 1 and on N processes and in any order of batches.

    Args:
        dimensions: Width ``d`` of the embedding's rows.
        reference: Statistics of the reference set; without them, feed reference rows with ``real=True``.
        name: Which sets are compared, for the :class:`RankWarning`.
        warn: Whether few rows give a :class:`RankWarning`.

    Example:
        >>> metric = FrechetAudioDistance(dimensions=2)
        >>> rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [1.0, 1.0]])
        >>> metric.update(rows, real=True)
        >>> metric.update(rows + torch.tensor([3.0, 4.0]))
        >>> round(metric.compute().item(), 6)
        25.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    generated_moments: Tensor
    reference_moments: Tensor

    def __init__(
        self,
        dimensions: int,
        reference: GaussianStatistics | None = None,
        name: str = "generated set",
        warn: bool = True,
    ) -> None:
        super().__init__()
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        if reference is not None and reference.dimensions != dimensions:
            raise ValueError(f"reference statistics have {reference.dimensions} dimensions, rows {dimensions}")
        self.dimensions, self.reference, self.name, self.warn = dimensions, reference, name, warn
        empty = torch.zeros(dimensions + 2, dimensions, dtype=torch.float64)
        self.add_state("generated_moments", default=empty.clone(), dist_reduce_fx=merge_moments)
        self.add_state("reference_moments", default=empty.clone(), dist_reduce_fx=merge_moments)

    def update(self, rows: Tensor, real: bool = False) -> None:
        """Add ``rows [n, d]`` (n may be 0) to the generated set, or to the reference set with ``real``."""
        if rows.dim() != 2 or rows.shape[1] != self.dimensions:
            raise ValueError(f"expected rows [n, {self.dimensions}], got {tuple(rows.shape)}")
        if real and self.reference is not None:
            raise ValueError("this metric has fixed reference statistics; rows with real=True are refused")
        name = "reference_moments" if real else "generated_moments"
        state = getattr(self, name)
        part = torch.from_numpy(moments_of(rows.detach().to("cpu", torch.float64).numpy())).to(state.device)
        setattr(self, name, merge_moments(torch.stack((state, part))))

    def statistics(self, real: bool = False) -> GaussianStatistics:
        """Statistics of the rows seen by this process (by all of them inside ``sync_context``)."""
        if real and self.reference is not None:
            return self.reference
        return statistics_of((self.reference_moments if real else self.generated_moments).cpu().numpy())

    def compute(self) -> Tensor:
        """FAD, float64 scalar; warns when either set has fewer than ``2 d`` rows."""
        generated, reference = self.statistics(), self.statistics(real=True)
        rows = min(generated.rows, reference.rows)
        if self.warn and rows < 2 * self.dimensions:
            warnings.warn(
                f"{self.name}: {rows} embedding rows for {self.dimensions} dimensions (fewer than twice as many): the "
                "FAD is biased upwards; compare only at equal rows, or read FAD-infinity",
                RankWarning,
                stacklevel=2,
            )
        return torch.tensor(frechet_distance(generated, reference), dtype=torch.float64, device=self.device)
