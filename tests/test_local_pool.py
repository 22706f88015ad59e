"""The pool of local processes: every unit once, errors by name, the order of the units, threads, no orphans."""

import os
from dataclasses import dataclass

import pytest

from hafm_lightning.local_pool import ProcessPool, SerialPool, in_order, local_pool, usable_cores


@dataclass(frozen=True)
class Square:
    """Squares numbers; fails or dies at one of them."""

    fails_at: int = -1
    dies_at: int = -1

    def __call__(self, number: int) -> int:
        if number == self.fails_at:
            raise RuntimeError(f"no square of {number}")
        if number == self.dies_at:
            os._exit(9)
        return number**2


def test_processes_do_every_unit_once_and_serve_many_maps():
    with ProcessPool(2) as pool:
        for count in (11, 0, 1):
            results = dict(pool.map(Square(), list(range(count))))
            assert results == {index: index**2 for index in range(count)}
        with pytest.raises(RuntimeError, match="no square of 3"):
            list(pool.map(Square(fails_at=3), list(range(8))))
        assert dict(pool.map(Square(), [5])) == {0: 25}


def test_an_error_in_the_only_process_reaches_the_caller():
    with SerialPool() as pool, pytest.raises(RuntimeError, match="no square of 3"):
        list(pool.map(Square(fails_at=3), list(range(8))))


def test_a_worker_that_dies_is_reported_with_what_was_running():
    with ProcessPool(1) as pool, pytest.raises(RuntimeError, match=r"worker process died .* units .* of 6"):
        list(pool.map(Square(dies_at=2), list(range(6))))


def test_results_come_in_the_order_of_the_units():
    finished = [(2, "c"), (0, "a"), (3, "d"), (1, "b")]
    assert list(in_order(finished)) == ["a", "b", "c", "d"]
    early = in_order(iter([(0, "a"), (2, "c")]))
    assert next(early) == "a"


def threads_of_worker(unit: int) -> tuple[int, str | None]:
    import torch

    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def test_workers_get_their_threads_and_the_environment_is_given_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with ProcessPool(1, threads=3) as pool:
        assert dict(pool.map(threads_of_worker, [0])) == {0: (3, "3")}
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "MKL_NUM_THREADS" not in os.environ


def test_one_worker_needs_no_process():
    assert isinstance(local_pool(1), SerialPool)
    assert isinstance(local_pool(2), ProcessPool)
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
