"""Frechet audio distance (FAD): Gaussian statistics of embedding rows, their files, the distance, the metric.

FAD compares two sets of embedding rows by the Frechet distance of the Gaussians fitted to them::

    |mu_x - mu_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^1/2)

* The last trace is the sum of the square roots of the eigenvalues of ``F^T C_y F`` for any factor ``C_x = F F^T``. It
  stays real, and exact to rounding, where the covariances are rank-deficient and ``scipy.linalg.sqrtm`` drifts into
  complex numbers. Only eigenvalues are computed.
* Everything is float64. A set is stored as *moments* ``[d + 2, d]`` (count, mean, scatter about the mean), and two
  parts of a set are merged about their common mean (Chan, Golub and LeVeque, 1979). Rows far from zero lose no
  digits, and the number is the same, to rounding, on 1 and on N processes and in any order of batches.
* FAD is biased upwards by about 1/n. Under ``2 d`` rows a :class:`RankWarning` is given, and
  :func:`frechet_infinity` extrapolates the bias away.

Sources: Kilgour et al., *Frechet Audio Distance* (arXiv 1812.08466); Chong and Forsyth, *Effectively unbiased FID*
(arXiv 1911.07023) and Gui et al., *Adapting FAD for generative music evaluation* (arXiv 2311.01616) for the
extrapolation.
"""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
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

from hafm_lightning import limits
from hafm_lightning.errors import RequestError
from hafm_lightning.files import atomic_file
from hafm_lightning.sealing import check_seal, seal
from hafm_lightning.untrusted import parse_json

Float64Array = npt.NDArray[np.float64]

STATISTICS_FORMAT = 2
"""Version of the ``.npz`` layout, 2 with a digest; files of a newer one are refused."""
TOLERANCE = 1e-5
"""Largest asymmetry and smallest eigenvalue of a stored covariance, as shares of its largest eigenvalue."""
ADVICE = "compute it again"
BLOCK_ROWS = 1024
"""Rows taken at once when moments are formed."""
INFINITY_ROWS = 4
"""FAD-infinity needs this many rows for each dimension: subsets from twice the dimensions to twice as many rows."""
IDENTITY_KEY = "embedding_identity"
"""Key of the provenance for the identity of the embedding (weights, layer, framing) that made the rows."""


class RankWarning(UserWarning):
    """Fewer rows than twice the dimensions: covariance nearly singular, FAD biased upwards."""


@dataclass(frozen=True)
class GaussianStatistics:
    """Count, mean and covariance of a set of embedding rows."""

    rows: int  # at least 2
    mean: Float64Array  # [d]
    covariance: Float64Array  # [d, d], with divisor `rows - 1`, as the published tools have it
    # Origin of the rows (embedding, identity, clips, seconds a clip, set): JSON values only.
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != self.mean.shape * 2:
            raise ValueError(f"expected mean [d] and covariance [d, d], got {self.mean.shape}, {self.covariance.shape}")
        if self.rows < 2:
            raise ValueError(f"a Frechet distance needs at least 2 embedding rows on each side, got {self.rows}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("statistics hold NaN or infinite values")

    @cached_property
    def factor(self) -> tuple[Float64Array, bool]:
        """``F [d, d]`` with ``covariance = F F^T``, and whether it is lower triangular, as it is at full rank.

        Cached: a reference set is compared with many others.
        """
        from scipy.linalg import lapack

        triangle, failed = lapack.dpotrf(self.covariance.T, lower=1, clean=1)
        if not failed:
            return triangle, True
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=np.float64), False

    @staticmethod
    def from_rows(rows: npt.ArrayLike, provenance: Mapping[str, Any] | None = None) -> GaussianStatistics:
        """Statistics of ``rows [n, d]``."""
        return statistics_of(moments_of(rows), provenance)

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` without pickles, atomically: format, rows, mean, covariance, provenance, and a digest."""
        content: dict[str, Any] = {
            "format": np.int64(STATISTICS_FORMAT),
            "rows": np.int64(self.rows),
            "mean": self.mean,
            "covariance": self.covariance,
            "provenance": np.str_(json.dumps(dict(self.provenance), sort_keys=True)),
        }
        with atomic_file(Path(path)) as draft:
            with draft.open("wb") as file:
                np.savez(file, **content)
            seal(draft)

    @staticmethod
    def load(path: str | Path) -> GaussianStatistics:
        """Read a file of :meth:`save`.

        Raises:
            RequestError: The file is missing, damaged or newer, is not such an archive, holds pickles, or its numbers
                are no covariance (:func:`check_covariance`).
        """
        source = Path(path)
        if not source.exists():
            raise RequestError(f"no statistics file {source}; write one with GaussianStatistics.save")
        check_seal(source, what="a statistics file", advice=ADVICE)
        try:
            with np.load(source, allow_pickle=False) as archive:
                _check_sizes(archive.zip)
                version = _whole_number(archive["format"])
                if version > STATISTICS_FORMAT:
                    raise RequestError(
                        f"{source}: statistics of format {version}; this version reads up to {STATISTICS_FORMAT}: "
                        "update hafm_lightning"
                    )
                rows = _whole_number(archive["rows"])
                mean, covariance = (_real_numbers(archive[key]) for key in ("mean", "covariance"))
                provenance = parse_json(str(archive["provenance"]), f"{source}: provenance", advice=ADVICE)
                if not isinstance(provenance, dict):
                    raise ValueError("provenance is no object")
                statistics = GaussianStatistics(rows, mean, covariance, provenance)
                check_covariance(covariance, rows)
                return statistics
        except RequestError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, MemoryError) as error:
            raise RequestError(f"{source}: not a statistics file ({error!s:.160}); {ADVICE}") from error
        except (zipfile.BadZipFile, zlib.error, SyntaxError, RuntimeError, OverflowError) as error:
            raise RequestError(f"{source}: not a statistics file ({error!s:.160}); {ADVICE}") from error


def check_covariance(covariance: Float64Array, rows: int) -> None:
    """ValueError unless a matrix ``[d, d]`` can be the covariance of ``rows`` rows: symmetric, positive, of their rank.

    A rounding error of :data:`TOLERANCE` of its largest eigenvalue is allowed, as float32 makes it.
    """
    difference = float(np.abs(covariance - covariance.T).max())
    values = np.linalg.eigvalsh(covariance)
    allowed = TOLERANCE * max(float(np.abs(values).max()), float(np.abs(covariance).max()))
    if difference > allowed:
        raise ValueError(f"the covariance is not symmetric (entries differ by {difference:.3g})")
    if float(values.min()) < -allowed:
        raise ValueError(f"the covariance has the negative eigenvalue {float(values.min()):.3g}")
    rank = int((values > allowed).sum())
    if rank > rows - 1:
        raise ValueError(f"the covariance has rank {rank}, which {rows} rows cannot give")


def _check_sizes(archive: zipfile.ZipFile) -> None:
    size = sum(member.file_size for member in archive.infolist())
    if size > limits.current().json_bytes * 4:
        raise ValueError(f"its arrays have {size} bytes")


def _whole_number(array: npt.NDArray[Any]) -> int:
    if array.shape != () or array.dtype.kind not in "iu":
        raise ValueError(f"{array.dtype} {array.shape} is no whole number")
    return int(array)


def _real_numbers(array: npt.NDArray[Any]) -> Float64Array:
    if array.dtype.kind != "f":
        raise ValueError(f"{array.dtype} are no real numbers")
    return np.asarray(array, dtype=np.float64)


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
    return GaussianStatistics(rows, moments[1].copy(), moments[2:] / max(rows - 1, 1), dict(provenance or {}))


def pooled_statistics(parts: Sequence[Float64Array]) -> GaussianStatistics:
    """Statistics of the union of sets (for example clips) given by their moments ``[d + 2, d]``."""
    return statistics_of(merge_moments(torch.from_numpy(np.stack(parts))).numpy())


def frechet_distance(generated: GaussianStatistics, reference: GaussianStatistics) -> float:
    """Squared Frechet distance between two Gaussians, in the embedding's squared units; 0 for equal ones.

    Raises:
        ValueError: The widths differ, or the provenances name different embeddings.
    """
    if generated.mean.shape != reference.mean.shape:
        raise ValueError(
            f"embedding widths differ: {len(generated.mean)} and {len(reference.mean)}; use one embedding on both sides"
        )
    left, right = generated.provenance.get(IDENTITY_KEY), reference.provenance.get(IDENTITY_KEY)
    if left is not None and right is not None and left != right:
        raise ValueError(f"rows of different embeddings cannot be compared: {left} and {right}")
    cross = _trace_of_root(generated.covariance, *reference.factor)
    offset = generated.mean - reference.mean
    spread = np.trace(generated.covariance) + np.trace(reference.covariance) - 2 * cross
    return max(float(offset @ offset + spread), 0.0)


def _trace_of_root(covariance: Float64Array, factor: Float64Array, triangular: bool) -> float:
    """``tr (C F F^T)^1/2`` of a covariance ``C [d, d]`` and the factor of another; both may be singular."""
    from scipy.linalg import blas

    if triangular:  # LAPACK stores columns first: it gets a symmetric matrix without a copy as its transpose
        inner = blas.dtrmm(1.0, factor, covariance.T, side=1, lower=1)
        inner = blas.dtrmm(1.0, factor, inner, side=0, lower=1, trans_a=1, overwrite_b=1)
    else:
        inner = factor.T @ covariance @ factor
    return float(np.sqrt(np.maximum(_symmetric_eigenvalues(inner), 0.0)).sum())


def _symmetric_eigenvalues(matrix: Float64Array) -> Float64Array:
    """Eigenvalues ``[d]`` of a symmetric matrix by the two steps of LAPACK's drivers, without their copies."""
    from scipy.linalg import lapack

    if len(matrix) == 1:
        return np.asarray(matrix[0], dtype=np.float64)
    _, diagonal, beside, _, _ = lapack.dsytrd(matrix, lower=1, lwork=8 * len(matrix))  # reduces 8 columns at once
    values, failed = lapack.dsterf(diagonal, beside)
    return np.asarray(np.linalg.eigvalsh(matrix) if failed else values, dtype=np.float64)


class FrechetInfinity(NamedTuple):
    """FAD extrapolated to infinitely many rows."""

    value: float
    reliable: bool  # False if the bias of the smallest subset, or of the reference, need not follow 1/n


def frechet_infinity(rows: npt.ArrayLike, reference: GaussianStatistics, seed: int = 0) -> FrechetInfinity:
    """Fit FAD against 1/n over subsets of ``rows [n, d]`` and return the intercept.

    The subsets are drawn with ``seed``, without replacement. Their 15 sizes are spread evenly from a fifth of n (at
    least 2 d, where that leaves a range) to n. The result is reliable only if the smallest subset has 2 d rows, the
    largest twice as many, and the reference, whose own bias stays, 2 d rows too.

    Raises:
        ValueError: Fewer than 4 rows.
    """
    values = np.asarray(rows)
    n, d = values.shape
    if n < 4:
        raise ValueError(f"FAD-infinity needs at least 4 rows, got {n}")
    smallest = max(2, n // 5, min(2 * d, n // 2))
    sizes = sorted({round(size) for size in np.linspace(smallest, n, 15)})
    generator = np.random.default_rng(seed)
    subsets = (GaussianStatistics.from_rows(values[generator.permutation(n)[:size]]) for size in sizes)
    distances = [frechet_distance(subset, reference) for subset in subsets]
    _, intercept = np.polyfit(1 / np.asarray(sizes, dtype=np.float64), distances, 1)
    return FrechetInfinity(float(intercept), smallest >= 2 * d and n >= INFINITY_ROWS * d and reference.rows >= 2 * d)


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
        self, dimensions: int, reference: GaussianStatistics | None = None, name: str = "FAD", warn: bool = True
    ) -> None:
        super().__init__()
        self.dimensions, self.reference, self.name, self.warn = dimensions, reference, name, warn
        for state in ("generated_moments", "reference_moments"):
            empty = torch.zeros(dimensions + 2, dimensions, dtype=torch.float64)
            self.add_state(state, default=empty, dist_reduce_fx=merge_moments)

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

    def compute(self) -> Tensor:
        """FAD, float64 scalar; warns when either set has fewer than ``2 d`` rows."""
        generated = statistics_of(self.generated_moments.cpu().numpy())
        reference = self.reference or statistics_of(self.reference_moments.cpu().numpy())
        rows = min(generated.rows, reference.rows)
        if self.warn and rows < 2 * self.dimensions:
            warnings.warn(
                f"{self.name}: {rows} embedding rows for {self.dimensions} dimensions (fewer than twice as many): the "
                "FAD is biased upwards; compare only at equal rows, or read FAD-infinity",
                RankWarning,
                stacklevel=2,
            )
        return torch.tensor(frechet_distance(generated, reference), dtype=torch.float64, device=self.device)
