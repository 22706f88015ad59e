"""Work spread over processes: every unit once, and the environment left as it was."""

from __future__ import annotations

import os

import pytest

from hafm_lightning.evaluation.parallel import THREAD_VARIABLES, thread_limit, worker_pool


def environment(name: str) -> tuple[str | None, int]:
    return os.environ.get(name), os.getpid()


def test_one_worker_is_this_process() -> None:
    with worker_pool(1) as pool:
        assert list(pool.map(lambda unit: unit * 2, [1, 2, 3])) == [(0, 2), (1, 4), (2, 6)]


def test_processes_have_one_thread_each_and_every_unit_has_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREAD_VARIABLES[0], "5")
    with worker_pool(2) as pool:
        results = dict(pool.map(environment, list(THREAD_VARIABLES)))
    assert sorted(results) == list(range(len(THREAD_VARIABLES)))
    assert {value for value, _ in results.values()} == {"1"}
    assert os.getpid() not in {process for _, process in results.values()}
    assert os.environ[THREAD_VARIABLES[0]] == "5"


def test_the_thread_limit_is_taken_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREAD_VARIABLES[1], raising=False)

    def fail() -> None:
        with thread_limit(3):
            assert os.environ[THREAD_VARIABLES[1]] == "3"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert THREAD_VARIABLES[1] not in os.environ
