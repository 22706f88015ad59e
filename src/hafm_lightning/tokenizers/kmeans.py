"""K-means over feature frames: train with faiss, assign with torch, keep as safetensors and JSON.

Choices:

* Euclidean k-means by faiss, on the CPU and on one thread: with more, faiss rounds distances differently, and the same
  seed would give other centroids on another machine.
* faiss silently trains on 256 points a centroid; here every given point counts, and subsampling is the caller's
  explicit, seeded choice (:class:`FrameSample`).
* Assignment runs in float64, where a different batch, thread count or BLAS has no near-ties to flip.
* Centroids from elsewhere (scikit-learn or fairseq, joblib or pickle) run code when they are loaded: only behind
  ``trust_pickle=True``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hafm_lightning.errors import RequestError

ITERATIONS = 20
"""Lloyd iterations; the inertia of speech and music features moves by less than 0.5 % after that."""


@dataclass(frozen=True)
class KMeansReport:
    """How a training went.

    Attributes:
        points: Frames trained on.
        dimensions: Length of a frame.
        centroids: Number of centroids.
        seed: Seed of the initial choice of frames.
        iterations: Lloyd iterations.
        inertia: Mean squared distance of a training frame to its centroid.
        explained: Share of the frames' variance that the centroids explain, 0 to 1.
        dead_centroids: Centroids that are no training frame's nearest.
        perplexity: Exponential of the entropy of the centroids' use; ``centroids`` when all are used alike.
        seconds: Wall-clock time.
    """

    points: int
    dimensions: int
    centroids: int
    seed: int
    iterations: int
    inertia: float
    explained: float
    dead_centroids: int
    perplexity: float
    seconds: float


def check_enough(frames: int, centroids: int) -> None:
    """Raise RequestError when there are fewer frames than centroids."""
    if frames < centroids:
        raise RequestError(
            f"k-means for {centroids} centroids got only {frames} frames; give it more audio or fewer centroids"
        )


def train_kmeans(
    points: NDArray[np.float32], centroids: int, *, seed: int = 0, iterations: int = ITERATIONS
) -> tuple[NDArray[np.float32], KMeansReport]:
    """Centroids ``[k, d]`` of ``points [n, d]``, and how the training went.

    Args:
        points: Every one of them is used.
        centroids: Their number, ``k``.
        seed: Seed of the initial choice of points.
        iterations: Lloyd iterations.

    Raises:
        RequestError: Fewer points than centroids, or NaN or infinite values among them.
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
    kmeans = faiss.Kmeans(
        points.shape[1],
        centroids,
        niter=iterations,
        seed=seed,
        gpu=False,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points) // centroids + 1,
    )
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
    share = usage[usage > 0] / len(points)
    report = KMeansReport(
        points=len(points),
        dimensions=points.shape[1],
        centroids=centroids,
        seed=seed,
        iterations=iterations,
        inertia=inertia,
        explained=1 - inertia / variance if variance > 0 else 1.0,
        dead_centroids=int((usage == 0).sum()),
        perplexity=float(np.exp(-(share * np.log(share)).sum())),
        seconds=round(time.perf_counter() - started, 3),
    )
    return trained, report


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid (Euclidean) of each point: ``[n, d]``, ``[k, d]`` -> int64 ``[n]``.

    Of equally near centroids the first is taken. Computed in float64, on the CPU where the device has none.
    """
    if points.device.type == "mps":
        return assign(points.cpu(), centroids.cpu()).to(points.device)
    points, centroids = points.double(), centroids.double()
    half_norms = centroids.square().sum(dim=1) / 2
    return (points @ centroids.T - half_norms).argmax(dim=1)


class FrameSample:
    """A uniform sample of at most ``limit`` frames of a stream of clips whose number is not known beforehand.

    Each frame draws a key from (seed, number of its clip); the frames with the smallest keys stay. So the sample
    depends on the seed and the order of the clips alone, and memory is bounded whatever the corpus.
    """

    def __init__(self, limit: int, seed: int) -> None:
        if limit < 1:
            raise ValueError(f"a sample needs room for at least 1 frame, got {limit}")
        self.limit = limit
        self.seed = seed
        self.clips = 0
        self.seen = 0
        self._frames: list[NDArray[np.float32]] = []
        self._keys: list[NDArray[np.float64]] = []
        self._count = 0

    def add(self, frames: NDArray[np.float32]) -> None:
        """Offer the frames ``[n, d]`` of the next clip."""
        generator = np.random.default_rng([self.seed, self.clips])
        self.clips += 1
        self.seen += len(frames)
        self._frames.append(np.array(frames, dtype=np.float32))
        self._keys.append(generator.random(len(frames)))
        self._count += len(frames)
        if self._count > 2 * self.limit:
            self._prune()

    def _prune(self) -> None:
        frames, keys = np.concatenate(self._frames), np.concatenate(self._keys)
        if len(keys) > self.limit:
            chosen = np.sort(np.argsort(keys, kind="stable")[: self.limit])
            frames, keys = frames[chosen], keys[chosen]
        self._frames, self._keys, self._count = [frames], [keys], len(keys)

    def frames(self) -> NDArray[np.float32]:
        """The sampled frames ``[m, d]`` in the order in which they came; RequestError when there were none."""
        if not self.seen:
            raise RequestError("no audio to train a tokenizer on: the corpus gave no clips")
        self._prune()
        return self._frames[0]


def sample_frames(clips: Iterable[NDArray[np.float32]], limit: int, seed: int) -> FrameSample:
    """A :class:`FrameSample` of all ``clips`` (each ``[n, d]``)."""
    sample = FrameSample(limit, seed)
    for frames in clips:
        sample.add(frames)
    return sample


def import_centroids(path: str | Path, *, trust_pickle: bool = False) -> NDArray[np.float32]:
    """Centroids ``[k, d]`` trained elsewhere.

    Reads `.safetensors` (one 2-D array, or one called ``centroids``) and `.npy` as they are. Anything else is taken for
    a scikit-learn or fairseq k-means saved by joblib or pickle, which **runs code from the file** and is therefore
    refused unless ``trust_pickle`` is set.

    Raises:
        RequestError: Not there, not readable, not trusted, or no finite 2-D centroids inside.
    """
    source = Path(path)
    if not source.is_file():
        raise RequestError(f"no centroids at {source}: the file does not exist")
    if source.suffix == ".safetensors":
        array: Any = _centroids_from_safetensors(source)
    elif source.suffix == ".npy":
        try:
            array = np.load(source, allow_pickle=False)
        except ValueError as error:
            raise RequestError(f"{source} cannot be read as plain numbers: {error}") from error
    elif not trust_pickle:
        raise RequestError(
            f"{source} is not .safetensors or .npy; a joblib or pickle file runs code when it is loaded: "
            "pass trust_pickle=True if you trust its origin"
        )
    else:
        array = _centroids_from_pickle(source)
    centroids = np.asarray(array)
    if centroids.ndim != 2 or centroids.dtype.kind != "f" or not np.isfinite(centroids).all():
        raise RequestError(
            f"{source} holds {centroids.dtype} {centroids.shape}, not finite floating-point centroids [k, d]"
        )
    return np.ascontiguousarray(centroids, dtype=np.float32)


def _centroids_from_safetensors(source: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(source)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{source} cannot be read: {error}") from error
    if "centroids" in arrays:
        return arrays["centroids"]
    if len(arrays) != 1:
        raise RequestError(f"{source} holds {sorted(arrays)}; expected one array, or one called 'centroids'")
    return next(iter(arrays.values()))


def _centroids_from_pickle(source: Path) -> Any:
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
    return model.cluster_centers_
