"""Frechet and kernel distances against scipy, torchmetrics, closed forms and naive loops; equality over processes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.multiprocessing

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.distances.frechet import (
    IDENTITY_KEY,
    FrechetAudioDistance,
    GaussianStatistics,
    RankWarning,
    frechet_distance,
    frechet_infinity,
    moments_of,
    pooled_statistics,
)


def random_rows(n: int, d: int, seed: int, offset: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Correlated Gaussian rows; all seeds share the correlation, so that sets resemble one another."""
    mixing = np.random.default_rng(99).standard_normal((d, d)) / d**0.5
    return np.random.default_rng(seed).standard_normal((n, d)) @ mixing * scale + offset


def sqrtm_distance(x: np.ndarray, y: np.ndarray) -> float:
    covariances = [np.cov(rows.astype(np.float64), rowvar=False) for rows in (x, y)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    offset = x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)
    return float(offset @ offset + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def distance_of(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(GaussianStatistics.from_rows(x), GaussianStatistics.from_rows(y))


def test_equals_scipy_sqrtm() -> None:
    x, y = random_rows(2000, 32, 0), random_rows(1500, 32, 1, offset=0.3, scale=1.2)
    assert distance_of(x, y) == pytest.approx(sqrtm_distance(x, y), rel=1e-10)


def test_closed_form_of_diagonal_gaussians() -> None:
    mean, spread = np.array([1.0, -2.0, 0.5]), (np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25]))
    first = GaussianStatistics(10, np.zeros(3), np.diag(spread[0]))
    second = GaussianStatistics(10, mean, np.diag(spread[1]))
    expected = (mean**2).sum() + ((np.sqrt(spread[0]) - np.sqrt(spread[1])) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-12)


def test_one_dimension_and_an_even_smaller_rank() -> None:
    x, y = random_rows(9, 1, 30), random_rows(7, 1, 31, offset=0.5)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert distance_of(x, y) == pytest.approx(expected, rel=1e-12)
    still = np.ones((5, 3))
    assert distance_of(still, still + 2.0) == pytest.approx(12.0, rel=1e-12)  # no spread at all: the means alone


@pytest.mark.parametrize("n", [1, 2, 1023, 1024, 1025, 2500])
def test_moments_taken_in_blocks_are_those_of_all_rows(n: int) -> None:
    rows = random_rows(n, 6, 32, offset=3.0).astype(np.float32)
    moments = moments_of(rows)
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    np.testing.assert_allclose(moments[1], rows.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments[2:], centred.T @ centred, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(moments[2:], moments[2:].T)


def test_equals_torchmetrics_fid_arithmetic() -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = random_rows(500, 16, 2), random_rows(400, 16, 3, offset=0.5)
    tensors = [torch.from_numpy(rows) for rows in (x, y)]
    expected = _compute_fid(tensors[0].mean(0), tensors[0].T.cov(), tensors[1].mean(0), tensors[1].T.cov())
    metric = FrechetAudioDistance(16)
    metric.update(tensors[0])
    metric.update(tensors[1], real=True)
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-10)


def test_rank_deficient_sets_stay_exact() -> None:
    # With C = A^T A, tr (C_x C_y)^1/2 is the nuclear norm of A_x A_y^T: no square root of a singular matrix is taken.
    x, y = random_rows(20, 64, 4), random_rows(30, 64, 5, offset=0.1)
    factors = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (x, y)]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + sum((f**2).sum() for f in factors) - 2 * cross
    # Rounding of the singular directions (1e-16) shows as its square root: 1e-8.
    assert distance_of(x, y) == pytest.approx(expected, rel=1e-7)


def test_a_large_offset_costs_no_digits() -> None:
    x, y = random_rows(400, 8, 6), random_rows(300, 8, 7, scale=1.3)
    shifted = FrechetAudioDistance(8)
    shifted.update(torch.from_numpy(x + 2.0**20))
    shifted.update(torch.from_numpy(y + 2.0**20), real=True)
    assert shifted.compute().item() == pytest.approx(distance_of(x, y), rel=1e-8)


def test_batches_in_any_order_and_of_any_size_give_one_number() -> None:
    x, y = random_rows(101, 8, 8), random_rows(90, 8, 9, offset=0.2)
    expected = distance_of(x, y)
    for sizes, order_seed in (((50, 51), 0), ((1, 30, 0, 70), 1), ((101,), 2), ((7,) * 14 + (3,), 3)):
        parts = np.split(x, np.cumsum(sizes)[:-1])
        metric = FrechetAudioDistance(8, GaussianStatistics.from_rows(y))
        for index in np.random.default_rng(order_seed).permutation(len(parts)):
            metric.update(torch.from_numpy(parts[index]))
        assert metric.compute().item() == pytest.approx(expected, rel=1e-10)


def test_pooled_clip_moments_equal_the_rows_together() -> None:
    clips = [random_rows(n, 5, n, offset=n) for n in (3, 1, 8)]
    pooled = pooled_statistics([moments_of(clip) for clip in clips])
    rows = np.concatenate(clips)
    np.testing.assert_allclose(pooled.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(pooled.covariance, np.cov(rows, rowvar=False), rtol=1e-11)


def _distance_on_two_processes(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        rows = torch.from_numpy(random_rows(47, 6, 10))
        reference = torch.from_numpy(random_rows(31, 6, 11, offset=0.4))
        metric = FrechetAudioDistance(6)
        for start in range(rank * 5, 47, 10):  # 5 rows each in turn: 25 on rank 0 and 22 on rank 1
            metric.update(rows[start : start + 5])
        if rank == 0:  # rank 1 sees no reference row at all
            metric.update(reference, real=True)
        torch.save(metric.compute(), f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_with_uneven_shares_give_the_number_of_one(tmp_path: Path) -> None:
    # Forked, not spawned: importing torch twice more would be most of this file's time.
    torch.multiprocessing.start_processes(
        _distance_on_two_processes, args=(str(tmp_path),), nprocs=2, start_method="fork"
    )
    expected = distance_of(random_rows(47, 6, 10), random_rows(31, 6, 11, offset=0.4))
    for rank in range(2):
        assert torch.load(tmp_path / f"rank{rank}.pt").item() == pytest.approx(expected, rel=1e-12)


def test_forward_accumulates_and_reset_empties() -> None:
    x, y = torch.from_numpy(random_rows(60, 4, 12)), random_rows(50, 4, 13, offset=1.0)
    metric = FrechetAudioDistance(4, GaussianStatistics.from_rows(y))
    first = metric(x[:30])
    assert first.item() == pytest.approx(distance_of(x[:30].numpy(), y), rel=1e-12)
    metric(x[30:])
    assert metric.compute().item() == pytest.approx(distance_of(x.numpy(), y), rel=1e-12)
    metric.reset()
    metric.update(x[:1])
    with pytest.raises(ValueError, match="at least 2 embedding rows on each side, got 1"):
        metric.compute()


def test_half_precision_modules_keep_float64_state() -> None:
    metric = FrechetAudioDistance(3).half()
    metric.update(torch.randn(5, 3, dtype=torch.float16))
    assert metric.generated_moments.dtype == torch.float64


@pytest.mark.parametrize(("rows", "warned"), [(15, True), (16, False)])
def test_warns_below_twice_the_dimensions(rows: int, warned: bool) -> None:
    metric = FrechetAudioDistance(8, GaussianStatistics.from_rows(random_rows(100, 8, 14)))
    metric.update(torch.from_numpy(random_rows(rows, 8, 15)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric.compute()
    assert any(issubclass(item.category, RankWarning) for item in caught) is warned


def test_rows_with_nan_are_counted_and_refused() -> None:
    rows = random_rows(10, 3, 16)
    rows[[2, 7]] = np.nan
    with pytest.raises(ValueError, match="2 of 10 embedding rows"):
        FrechetAudioDistance(3).update(torch.from_numpy(rows))


def test_rows_of_different_embeddings_are_refused() -> None:
    rows = random_rows(20, 3, 17)
    first, second = (GaussianStatistics.from_rows(rows, {IDENTITY_KEY: name}) for name in ("a:1", "a:2"))
    with pytest.raises(ValueError, match=r"different embeddings.*a:1 and a:2"):
        frechet_distance(first, second)
    with pytest.raises(ValueError, match="widths differ"):
        frechet_distance(first, GaussianStatistics.from_rows(random_rows(20, 4, 17)))


def test_statistics_file_round_trip(tmp_path: Path) -> None:
    saved = GaussianStatistics.from_rows(random_rows(20, 3, 18), {"clips": 4, "set": "test", "seconds": 3.0})
    saved.save(tmp_path / "reference.npz")
    loaded = GaussianStatistics.load(tmp_path / "reference.npz")
    assert (loaded.rows, loaded.provenance) == (20, saved.provenance)
    np.testing.assert_array_equal(loaded.covariance, saved.covariance)
    np.testing.assert_array_equal(loaded.mean, saved.mean)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_statistics_files_with_pickles_garbage_or_a_newer_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no statistics file"):
        GaussianStatistics.load(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(RequestError, match="not a statistics file"):
        GaussianStatistics.load(tmp_path / "text.npz")
    np.savez(
        tmp_path / "pickle.npz", format=1, rows=2, mean=np.array([{}], dtype=object), covariance=1, provenance="{}"
    )
    with pytest.raises(RequestError, match="not a statistics file"):
        GaussianStatistics.load(tmp_path / "pickle.npz")
    np.savez(tmp_path / "newer.npz", format=3)
    with pytest.raises(RequestError, match="update hafm_lightning"):
        GaussianStatistics.load(tmp_path / "newer.npz")


def test_infinity_removes_most_of_the_bias() -> None:
    d = 16
    reference = GaussianStatistics(10**6, np.zeros(d), np.eye(d))
    rows = np.random.default_rng(19).standard_normal((1200, d)) + 0.25  # true distance: 16 / 16 = 1
    raw = frechet_distance(GaussianStatistics.from_rows(rows[:200]), reference)
    found = frechet_infinity(rows, reference, seed=3)
    assert raw > 1.05
    assert abs(found.value - 1.0) < min(raw - 1.0, 0.08)
    assert found.reliable
    assert found == frechet_infinity(rows, reference, seed=3)


@pytest.mark.parametrize("n", [256, 384, 500])
def test_infinity_of_too_few_rows_is_not_called_reliable(n: int) -> None:
    """256 rows of 128 dimensions were called reliable, far from the true distance."""
    reference = GaussianStatistics(10**6, np.zeros(128), np.eye(128))
    rows = np.random.default_rng(n).standard_normal((n, 128))
    assert not frechet_infinity(rows, reference).reliable


def test_infinity_needs_a_reference_of_enough_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 16))
    assert frechet_infinity(rows, GaussianStatistics.from_rows(rows[:40])).reliable
    assert not frechet_infinity(rows, GaussianStatistics.from_rows(rows[:30])).reliable


def test_infinity_says_when_the_line_is_no_law() -> None:
    reference = GaussianStatistics.from_rows(random_rows(100, 16, 20))
    assert not frechet_infinity(random_rows(24, 16, 21), reference).reliable
    with pytest.raises(ValueError, match="at least 4 rows"):
        frechet_infinity(random_rows(3, 16, 21), reference)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"covariance": np.diag([1.0, -0.5, 1.0])}, "negative eigenvalue"),
        ({"covariance": np.array([[1.0, 0.9, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])}, "not symmetric"),
        ({"covariance": np.full((3, 3), np.nan)}, "NaN"),
        ({"covariance": np.eye(4)}, "expected mean"),
        ({"covariance": np.eye(3, dtype=np.int64)}, "no real numbers"),
        ({"covariance": np.eye(3) + 1j}, "no real numbers"),
        ({"mean": np.array([0.0, np.inf, 0.0])}, "NaN"),
        ({"rows": 3}, "rank 3, which 3 rows cannot give"),
        ({"rows": 1}, "at least 2"),
        ({"rows": -7}, "at least 2"),
        ({"rows": 2.5}, "whole number"),
        ({"rows": np.arange(3)}, "whole number"),
        ({"provenance": "[1]"}, "no object"),
        ({"provenance": "{"}, "damaged"),
        ({"provenance": "[" * 100_000}, "damaged"),
        ({"format": "new"}, "whole number"),
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path: Path, change: dict, reason: str) -> None:
    good = {"format": 1, "rows": 9, "mean": np.zeros(3), "covariance": np.eye(3), "provenance": "{}"}
    np.savez(tmp_path / "a.npz", **good)
    assert GaussianStatistics.load(tmp_path / "a.npz").rows == 9
    np.savez(tmp_path / "b.npz", **{**good, **change})
    with pytest.raises(RequestError, match=reason) as refused:
        GaussianStatistics.load(tmp_path / "b.npz")
    assert len(str(refused.value).splitlines()) == 1


def test_a_flipped_bit_in_statistics_is_found(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 3))
    GaussianStatistics.from_rows(rows).save(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(np.float64(GaussianStatistics.from_rows(rows).mean[0]).tobytes())] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    GaussianStatistics.load(tmp_path / "a.npz")
    with pytest.raises(RequestError, match="damaged"):
        GaussianStatistics.load(tmp_path / "b.npz")
