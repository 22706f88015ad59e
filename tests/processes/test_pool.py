"""The pool of local processes: every unit once, errors by name, the order of the units, threads, no orphans."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hafm_lightning.processes.pool import ProcessPool, SerialPool, in_order, local_pool, usable_cores


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


SLEEPER = """
import os, sys, time
from pathlib import Path
from hafm_lightning.processes.pool import ProcessPool

def sleep(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    with ProcessPool(2) as pool:
        list(pool.map(sleep, [sys.argv[1]] * 2))
"""


def alive(pid: int) -> bool:
    """True for a running process; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    """Both are at work for ten minutes when the parent is killed."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "workers").mkdir()
    parent = subprocess.Popen([sys.executable, tmp_path / "sleeper.py", tmp_path / "workers"])
    deadline = time.monotonic() + 300
    while len(workers := [int(path.name) for path in (tmp_path / "workers").iterdir()]) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.02)
    assert all(alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    try:
        deadline = time.monotonic() + 60
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < deadline, f"workers {workers} outlived their parent"
            time.sleep(0.02)
    finally:
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)
