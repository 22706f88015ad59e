"""FAD of 13,000 x 128 rows: this project's path beside numpy + scipy's sqrtm, alternating in one run.

    python benchmarks/frechet.py --json benchmarks/results/frechet.json

Pieces of work that differ in what dominates:

* `distance`: statistics -> FAD. The square root only; this is what an evaluation repeats (FAD-infinity, jackknife).
  Timed for two sets of one distribution (`alike`), whose covariances nearly commute, which is easy for a general square
  root; and for a set whose principal axes are turned against the reference's (`turned`), as those of two systems are.
* `covariances`: both sets of rows -> both covariances by BLAS alone (`dsyrk`): the part that no path can skip.
* `epoch`: new rows against stored reference statistics -> FAD; numpy tools keep no statistics and compute both sides.
* `rows`: both sets of rows -> FAD. Both paths must form both covariances, which nothing can skip.

`sqrtm complex` is what widely used FAD programs call: the product cast to complex before the square root.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from hafm_lightning.evaluation.distances.frechet import GaussianStatistics, frechet_distance


def synthetic_rows(rows: int, dimensions: int, seed: int, offset: float, turn: float = 0.0) -> np.ndarray:
    """Correlated Gaussian rows ``[rows, dimensions]`` with a spectrum falling over two decades, as embeddings have.

    ``turn`` rotates the principal axes: 0 leaves them; with 0.5 the typical axis of 128 turns by about 30 degrees.
    """
    generator = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    basis = np.linalg.qr(fixed.standard_normal((dimensions, dimensions)))[0]
    skew = fixed.standard_normal((dimensions, dimensions)) / np.sqrt(2 * dimensions)
    scales = np.logspace(0, -2, dimensions)
    rotation = scipy.linalg.expm(turn * (skew - skew.T))
    return (generator.standard_normal((rows, dimensions)) * scales) @ basis @ rotation + offset


def covariances_alone(*sets: np.ndarray) -> float:
    """Second moments of centred rows by one BLAS call a set: the floating-point work that every path shares."""
    return float(sum(scipy.linalg.blas.dsyrk(1.0, rows.T)[0, 0] for rows in sets))


def numpy_statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance as FAD programs compute them."""
    return np.mean(rows, axis=0), np.cov(rows, rowvar=False)


def sqrtm_distance(
    x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray], as_complex: bool = False
) -> float:
    """The usual formula with scipy's general matrix square root."""
    product = x[1] @ y[1]
    root = scipy.linalg.sqrtm(product.astype(complex) if as_complex else product)
    offset = x[0] - y[0]
    return float(offset @ offset + np.trace(x[1]) + np.trace(y[1]) - 2 * np.trace(np.real(root)))


def measure(paths: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """Run every path in turn, ``repeats`` times: median and best seconds, and the value."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    values: dict[str, float] = {}
    for _ in range(repeats + 1):  # the first round warms up
        for name, path in paths.items():
            start = time.perf_counter()
            values[name] = path()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(taken[1:]), "best_s": min(taken[1:]), "fad": values[name]}
        for name, taken in seconds.items()
    }


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=13000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="BLAS and torch threads; 1 gives the steadiest ratios")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    x = synthetic_rows(options.rows, options.dimensions, 0, 0.0)
    y = synthetic_rows(options.rows, options.dimensions, 1, 0.01)
    turned = synthetic_rows(options.rows, options.dimensions, 2, 0.01, turn=0.5)
    ours = [GaussianStatistics.from_rows(rows) for rows in (x, y, turned)]
    theirs = [numpy_statistics(rows) for rows in (x, y, turned)]

    def whole(as_complex: bool) -> float:
        return sqrtm_distance(numpy_statistics(x), numpy_statistics(y), as_complex)

    works: dict[str, dict[str, Callable[[], float]]] = {
        "distance, alike": {
            "this project": lambda: frechet_distance(ours[0], ours[1]),
            "sqrtm": lambda: sqrtm_distance(theirs[0], theirs[1]),
            "sqrtm complex": lambda: sqrtm_distance(theirs[0], theirs[1], as_complex=True),
        },
        "distance, turned": {
            "this project": lambda: frechet_distance(ours[2], ours[0]),
            "sqrtm": lambda: sqrtm_distance(theirs[2], theirs[0]),
            "sqrtm complex": lambda: sqrtm_distance(theirs[2], theirs[0], as_complex=True),
        },
        "epoch": {
            "this project": lambda: frechet_distance(GaussianStatistics.from_rows(x), ours[1]),
            "sqrtm": lambda: whole(False),
            "sqrtm complex": lambda: whole(True),
        },
        "rows": {
            "this project": lambda: frechet_distance(GaussianStatistics.from_rows(x), GaussianStatistics.from_rows(y)),
            "sqrtm": lambda: whole(False),
            "sqrtm complex": lambda: whole(True),
            "covariances": lambda: covariances_alone(x, y),
        },
    }
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{options.rows} x {options.dimensions} rows, numpy {np.__version__}, scipy {scipy.__version__}")
    print(
        f"{'work':<18}{'path':<16}{'median ms':>11}{'best ms':>10}{'x (median)':>12}{'x (best)':>10}{'rel. diff':>12}"
    )
    for work, paths in works.items():
        torch.set_num_threads(options.threads)
        with threadpool_limits(options.threads):
            found = measure(paths, options.repeats)
        mine = found["this project"]
        for name, entry in found.items():
            entry["ratio_median"] = entry["median_s"] / mine["median_s"]
            entry["ratio_best"] = entry["best_s"] / mine["best_s"]
            if name == "covariances":
                del entry["fad"]  # a part of the work, no distance
            entry["relative_difference"] = abs(entry.get("fad", mine["fad"]) / mine["fad"] - 1)
            print(
                f"{work:<18}{name:<16}{entry['median_s'] * 1e3:>11.2f}{entry['best_s'] * 1e3:>10.2f}"
                f"{entry['ratio_median']:>12.2f}{entry['ratio_best']:>10.2f}{entry['relative_difference']:>12.1e}"
            )
        results[work] = found
    if options.json is not None:
        about = {
            "rows": options.rows,
            "dimensions": options.dimensions,
            "repeats": options.repeats,
            "threads": options.threads,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
