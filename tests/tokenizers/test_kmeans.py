"""K-means: training, assignment, sampling, and centroids from elsewhere."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hafm_lightning.errors import RequestError
from hafm_lightning.tokenizers.kmeans import assign, import_centroids, perplexity, sample_frames, train_kmeans


def blobs(count: int = 2000, centres: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    means = generator.normal(0, 10, (centres, 5))
    return (means[generator.integers(centres, size=count)] + generator.normal(0, 0.1, (count, 5))).astype("f4"), means


def test_every_point_counts() -> None:
    points = np.random.default_rng(0).normal(3, 2, (5000, 4)).astype("f4")  # faiss alone would take 256 of them
    centroids, report = train_kmeans(points, 1)
    np.testing.assert_allclose(centroids[0], points.mean(axis=0), atol=1e-4)
    assert report.inertia == pytest.approx(points.var(axis=0).sum(), rel=1e-4)
    assert report.explained == pytest.approx(0.0, abs=1e-4)
    assert report.points == 5000


def test_as_good_as_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    points = np.random.default_rng(1).normal(size=(3000, 8)).astype("f4")
    _, report = train_kmeans(points, 20, seed=3)
    reference = KMeans(20, n_init=3, random_state=0).fit(points).inertia_ / len(points)
    assert report.inertia < 1.03 * reference


def test_the_report_is_what_the_centroids_do() -> None:
    points, _ = blobs()
    centroids, report = train_kmeans(points, 12, seed=1)
    distances = ((points[:, None] - centroids[None]) ** 2).sum(axis=2)
    assert report.inertia == pytest.approx(distances.min(axis=1).mean(), rel=1e-3)
    share = np.bincount(distances.argmin(axis=1), minlength=12) / len(points)
    assert report.dead_centroids == int((share == 0).sum())
    share = share[share > 0]
    assert report.perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert (report.centroids, report.dimensions, report.seed) == (12, 5, 1)


def test_perplexity_is_the_number_of_ids_in_equal_use() -> None:
    assert perplexity(np.array([5, 0, 5, 5, 0, 5])) == pytest.approx(4.0)
    assert perplexity(np.array([3, 1])) == pytest.approx(2 ** -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


def test_dead_centroids_are_counted() -> None:
    points = np.repeat(np.eye(3, dtype="f4"), 10, axis=0)  # three places for five centroids
    _, report = train_kmeans(points, 5)
    assert report.dead_centroids == 2
    assert report.inertia == pytest.approx(0, abs=1e-6)


def test_a_seed_decides_whatever_the_threads() -> None:
    import faiss

    generator = np.random.default_rng(0)
    # Correlated dimensions of very different size, some frames twice: where rounding shows first.
    points = (generator.normal(size=(3000, 32)) * np.geomspace(30, 0.1, 32)).astype("f4")
    points = np.concatenate((points, points[:300]))
    before, found = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 2, 3):
            faiss.omp_set_num_threads(threads)
            found.append(train_kmeans(points, 200, seed=7)[0])
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    assert train_kmeans(points, 200, seed=8)[0].tobytes() != found[0].tobytes()


def test_too_few_or_damaged_points_are_refused() -> None:
    points, _ = blobs(50)
    with pytest.raises(RequestError, match="60 centroids got only 50 frames"):
        train_kmeans(points, 60)
    points[17, 2] = np.nan
    points[20, 0] = np.inf
    with pytest.raises(RequestError, match="2 of 50 frames, first in frame 17"):
        train_kmeans(points, 5)
    with pytest.raises(ValueError, match="float32"):
        train_kmeans(points.astype("f8"), 5)


def test_assignment_takes_the_nearest_and_of_equals_the_first() -> None:
    points, centroids = torch.randn(200, 6), torch.randn(30, 6)
    assert torch.equal(assign(points, centroids), torch.cdist(points.double(), centroids.double()).argmin(dim=1))
    twice = torch.cat((centroids, centroids))
    assert torch.equal(assign(points, twice), assign(points, centroids))


@pytest.mark.parametrize(("points", "width", "count"), [(1, 768, 500), (7, 768, 501), (150, 33, 77), (500, 768, 503)])
def test_of_identical_centroids_the_first_is_taken_whatever_the_product_rounds(
    points: int, width: int, count: int
) -> None:
    centroids = torch.randn(count, width, dtype=torch.float64)
    group = torch.arange(count) % 37
    centroids = centroids[group]  # 37 different ones, many times over, at every place of a block of the product
    nearest = assign(torch.randn(points, width), centroids)
    assert int(nearest.max()) < 37


def numbered_clips(count: int = 100, length: int = 100) -> Iterator[np.ndarray]:
    """Frames that hold their own number."""
    for number in range(count):
        yield np.arange(number * length, (number + 1) * length, dtype="f4")[:, None]


def test_a_sample_below_the_limit_is_everything_in_order() -> None:
    clips = [np.full((length, 2), number, dtype="f4") for number, length in enumerate((3, 1, 4))]
    sample = sample_frames(iter(clips), 100, seed=0)
    np.testing.assert_array_equal(sample.frames, np.concatenate(clips))
    assert (sample.clips, sample.seen) == (3, 8)


def test_a_sample_is_uniform_and_a_function_of_its_seed() -> None:
    first = sample_frames(numbered_clips(), 500, seed=0).frames[:, 0]
    assert len(first) == 500
    assert np.all(np.diff(first) > 0)
    quarters = np.bincount((first // 2500).astype(int), minlength=4)
    assert quarters.min() > 85  # 125 expected, standard deviation 10
    np.testing.assert_array_equal(first, sample_frames(numbered_clips(), 500, seed=0).frames[:, 0])
    assert not np.array_equal(first, sample_frames(numbered_clips(), 500, seed=1).frames[:, 0])


def test_a_sample_takes_the_smallest_keys_of_all_frames() -> None:
    """The same by sorting all keys at once."""
    keys = np.concatenate([np.random.default_rng([7, number]).random(100) for number in range(100)])
    expected = np.sort(np.argsort(keys)[:500])
    np.testing.assert_array_equal(sample_frames(numbered_clips(), 500, seed=7).frames[:, 0], expected)


def test_the_memory_of_a_sample_is_bounded() -> None:
    clips = (np.zeros((100, 1000), dtype="f4") for _ in range(300))  # 120 MB
    tracemalloc.start()
    sample_frames(clips, 1000, seed=0)  # 4 MB
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 30e6


def test_a_larger_sample_holds_the_smaller_one() -> None:
    small, large = (set(sample_frames(numbered_clips(10), limit, 3).frames[:, 0].tolist()) for limit in (50, 200))
    assert small < large


def test_no_clips_are_refused() -> None:
    with pytest.raises(RequestError, match="no clips"):
        sample_frames([], 10, 0)


def test_centroids_as_plain_numbers_are_imported(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    centroids = np.random.default_rng(0).normal(size=(7, 3))
    np.save(tmp_path / "c.npy", centroids)
    save_file({"centroids": centroids.astype("f4"), "other": np.zeros(2, dtype="f4")}, tmp_path / "c.safetensors")
    save_file({"anything": centroids}, tmp_path / "d.safetensors")
    for name in ("c.npy", "c.safetensors", "d.safetensors"):
        found = import_centroids(tmp_path / name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, centroids, rtol=1e-6)


def test_scikit_learn_centroids_need_trust(tmp_path: Path) -> None:
    import joblib
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(4, n_init=1, random_state=0).fit(np.random.default_rng(0).normal(size=(100, 3)))
    joblib.dump(model, tmp_path / "km.bin")
    with pytest.raises(RequestError, match="trust_pickle=True"):
        import_centroids(tmp_path / "km.bin")
    found = import_centroids(tmp_path / "km.bin", trust_pickle=True)
    np.testing.assert_allclose(found, model.cluster_centers_, rtol=1e-6)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.npy", "evil.safetensors"])
def test_nothing_in_an_untrusted_file_runs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(_Canary(tmp_path / "ran")))
    with pytest.raises(RequestError, match=name):
        import_centroids(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_files_without_centroids_are_refused(tmp_path: Path) -> None:
    import joblib
    from safetensors.numpy import save_file

    with pytest.raises(RequestError, match="does not exist"):
        import_centroids(tmp_path / "nothing.npy")
    np.save(tmp_path / "ints.npy", np.zeros((3, 3), dtype=int))
    np.save(tmp_path / "nan.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros(3))
    for name in ("ints", "nan", "flat"):
        with pytest.raises(RequestError, match="not finite floating-point centroids"):
            import_centroids(tmp_path / f"{name}.npy")
    save_file({"a": np.zeros(2), "b": np.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(RequestError, match="expected one array"):
        import_centroids(tmp_path / "two.safetensors")
    joblib.dump({"no": "model"}, tmp_path / "dict.joblib")
    with pytest.raises(RequestError, match="not a k-means"):
        import_centroids(tmp_path / "dict.joblib", trust_pickle=True)
    for name in ("empty.npy", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(RequestError, match="cannot be read as plain numbers"):
            import_centroids(tmp_path / name)
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(RequestError, match="cannot be loaded"):
        import_centroids(tmp_path / "text.pkl", trust_pickle=True)
