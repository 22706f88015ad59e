"""K-means over feature frames: train with faiss, assign with torch, import centroids of other programs.

Choices:

* Euclidean k-means by faiss, on the CPU and on one thread: with more threads faiss rounds distances differently, and
  the same seed would give other centroids on another machine.
* Every given point counts, where faiss alone would take 256 per centroid; :func:`sample_frames` bounds their number.
* Assignment runs in float64, where another batch, thread count or BLAS has no near-ties to decide differently.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.errors import RequestError

ITERATIONS = 20  # after them the inertia of speech and music features changes by less than 0.5 %


@dataclass(frozen=True)
class KMeansReport:
    """Result of a training."""

    points: int  # frames trained on
    dimensions: int  # length of a frame
    centroids: int  # their number
    seed: int  # of the initial choice of frames
    iterations: int  # Lloyd iterations
    inertia: float  # mean squared distance of a training frame to its centroid
    explained: float  # share of the frames' variance that the centroids explain, 0 to 1
    dead_centroids: int  # centroids that are not nearest to any training frame
    perplexity: float  # exponential of the entropy of the centroids' use; `centroids` if all are used equally
    seconds: float  # wall-clock time


@dataclass(frozen=True)
class FrameSample:
    """Frames drawn from a stream of clips."""

    frames: NDArray[np.float32]  # `[m, d]`, in the order of the stream
    clips: int  # clips of the stream
    seen: int  # frames of the stream


def check_enough(frames: int, centroids: int) -> None:
    """RequestError if there are fewer frames than centroids."""
    if frames < centroids:
        raise RequestError(
            f"k-means for {centroids} centroids got only {frames} frames; give it more audio or fewer centroids"
        )


def train_kmeans(
    points: NDArray[np.float32], centroids: int, *, seed: int = 0, iterations: int = ITERATIONS
) -> tuple[NDArray[np.float32], KMeansReport]:
    """Centroids ``[k, d]`` of all ``points [n, d]``; ``centroids`` is their number ``k``.

    RequestError for fewer points than centroids, or NaN or infinite values.
    """
    import faiss

    if points.ndim != 2 or points.dtype != np.float32:
        raise ValueError(f"k-means needs float32 points [n, d], got {points.dtype} {points.shape}")
    check_enough(len(points), centroids)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise RequestError(
            f"k-means got NaN or infinite values in {int(bad.sum())} of {len(points)} frames, first in frame "
            f"{int(bad.argmax())}; repair the audio that they come from"
        )
    started = time.perf_counter()
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points) // centroids + 1}
    kmeans = faiss.Kmeans(points.shape[1], centroids, niter=iterations, seed=seed, **bounds)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        kmeans.train(np.ascontiguousarray(points))
        trained = np.asarray(kmeans.centroids, dtype=np.float32).reshape(centroids, -1).copy()
        distances, chosen = kmeans.index.search(np.ascontiguousarray(points), 1)
    finally:
        faiss.omp_set_num_threads(threads)
    usage = np.bincount(chosen[:, 0], minlength=centroids)
    inertia, variance = float(distances.mean(dtype=np.float64)), float(points.var(axis=0, dtype=np.float64).sum())
    report = KMeansReport(
        points=len(points),
        dimensions=points.shape[1],
        centroids=centroids,
        seed=seed,
        iterations=iterations,
        inertia=inertia,
        explained=1 - inertia / variance if variance > 0 else 1.0,
        dead_centroids=int((usage == 0).sum()),
        perplexity=perplexity(usage),
        seconds=round(time.perf_counter() - started, 3),
    )
    return trained, report


def perplexity(counts: NDArray[np.int64]) -> float:
    """Exponential of the entropy of ``counts [n]``; ``n`` if all are equal."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid (Euclidean) of each point: ``[n, d]``, ``[k, d]`` -> int64 ``[n]``.

    Of identical centroids the first is taken.
    """
    if points.device.type == "mps":  # has no float64
        return assign(points.cpu(), centroids.cpu()).to(points.device)
    points, centroids = points.double(), centroids.double()
    half_norms = centroids.square().sum(dim=1) / 2
    nearest = (points @ centroids.T - half_norms).argmax(dim=1)
    return _first_identical(centroids)[nearest]


def _first_identical(centroids: Tensor) -> Tensor:
    """For each of ``[k, d]`` the index of the first that is identical to it, int64 ``[k]``.

    A matrix product may round the columns of identical centroids differently, so that argmax alone takes any of them.
    """
    different, group = torch.unique(centroids, dim=0, return_inverse=True)
    numbers = torch.arange(len(centroids), device=centroids.device)
    first = torch.full((len(different),), len(centroids), device=centroids.device)
    return first.scatter_reduce(0, group, numbers, "amin")[group]


def sample_frames(clips: Iterable[NDArray[np.float32]], limit: int, seed: int) -> FrameSample:
    """A uniform sample of at most ``limit`` frames of ``clips``, each ``[n, d]``; RequestError without frames.

    Each frame draws a key from (seed, number of its clip); the frames with the smallest keys stay. So the sample
    depends on the seed and the order of the clips alone, and memory is bounded.
    """
    frames: list[NDArray[np.float32]] = []
    keys: list[NDArray[np.float64]] = []
    number = seen = held = 0
    for clip in clips:
        frames.append(np.array(clip, dtype=np.float32))
        keys.append(np.random.default_rng([seed, number]).random(len(clip)))
        number, seen, held = number + 1, seen + len(clip), held + len(clip)
        if held > 2 * limit:
            frames, keys = _smallest(frames, keys, limit)
            held = limit
    if not seen:
        raise RequestError("no audio to train a tokenizer on: the corpus gave no clips")
    return FrameSample(_smallest(frames, keys, limit)[0][0], number, seen)


def _smallest(
    frames: list[NDArray[np.float32]], keys: list[NDArray[np.float64]], limit: int
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float64]]]:
    """The frames with the ``limit`` smallest keys, in their order, and these keys, as one array each."""
    all_frames, all_keys = np.concatenate(frames), np.concatenate(keys)
    chosen = np.sort(np.argsort(all_keys, kind="stable")[:limit])
    return [all_frames[chosen]], [all_keys[chosen]]


def import_centroids(path: str | Path, *, trust_pickle: bool = False) -> NDArray[np.float32]:
    """Centroids ``[k, d]`` that another program trained.

    `.safetensors` (one array, or one called ``centroids``) and `.npy` are read as data. Every other file is taken for
    a scikit-learn or fairseq k-means saved by joblib or pickle, which **runs code from the file** and is refused
    without ``trust_pickle``. RequestError if the file is missing, damaged, not trusted, or holds other content.
    """
    source = Path(path)
    if not source.is_file():
        raise RequestError(f"no centroids at {source}: the file does not exist")
    if source.suffix in (".safetensors", ".npy"):
        centroids = _read_numbers(source)
    elif trust_pickle:
        centroids = _read_pickle(source)
    else:
        raise RequestError(
            f"{source} is not .safetensors or .npy; a joblib or pickle file runs code when it is loaded: "
            "pass trust_pickle=True if you trust its origin"
        )
    if centroids.ndim != 2 or centroids.dtype.kind != "f" or not np.isfinite(centroids).all():
        raise RequestError(
            f"{source} holds {centroids.dtype} {centroids.shape}, not finite floating-point centroids [k, d]"
        )
    return np.ascontiguousarray(centroids, dtype=np.float32)


def _read_numbers(source: Path) -> NDArray[Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if source.suffix == ".npy":
            return np.asarray(np.load(source, allow_pickle=False))
        arrays = load_file(source)
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        raise RequestError(f"{source} cannot be read as plain numbers: {error}") from error
    if "centroids" not in arrays and len(arrays) != 1:
        raise RequestError(f"{source} holds {sorted(arrays)}; expected one array, or one called 'centroids'")
    return np.asarray(arrays.get("centroids", next(iter(arrays.values()))))


def _read_pickle(source: Path) -> NDArray[Any]:
    try:
        import joblib
    except ModuleNotFoundError as error:
        raise RequestError(f"{source} needs joblib: pip install joblib scikit-learn") from error
    try:
        model = joblib.load(source)
    except Exception as error:
        raise RequestError(f"{source} cannot be loaded by joblib: {type(error).__name__}: {error}") from error
    if not hasattr(model, "cluster_centers_"):
        raise RequestError(f"{source} holds a {type(model).__name__} without cluster_centers_: not a k-means")
    return np.asarray(model.cluster_centers_)
