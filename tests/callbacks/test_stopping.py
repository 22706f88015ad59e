"""Signals that set a flag, and SLURM's queue."""

import os
import signal
import threading

import pytest

from hafm_lightning.callbacks.stopping import StopSignals, requeue_slurm_job


@pytest.fixture
def handler():
    """A handler of SIGTERM and SIGUSR1 that only counts, in place of pytest's."""
    seen = []
    before = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in (signal.SIGTERM, signal.SIGUSR1)}
    yield seen
    for number, former in before.items():
        signal.signal(number, former)


@pytest.mark.parametrize("slurm", [False, True])
def test_a_signal_sets_a_flag_until_the_handlers_are_given_back(handler, monkeypatch, slurm):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
    signals = StopSignals()
    signals.install()
    signals.install()  # a second time changes nothing: the former handlers must not be lost
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (signals.received, signals.asks_to_requeue) == ((signal.SIGUSR1, True) if slurm else (None, False))
    os.kill(os.getpid(), signal.SIGTERM)
    assert (signals.received, signals.asks_to_requeue) == (signal.SIGTERM, False)
    signals.restore()
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler == ([] if slurm else [signal.SIGUSR1]) + [signal.SIGTERM]


def test_other_threads_leave_the_handlers_alone(handler):
    thread = threading.Thread(target=StopSignals().install)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler == [signal.SIGTERM]


def test_an_array_job_is_queued_again_by_both_numbers(tmp_path, monkeypatch, caplog):
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue_slurm_job()
    assert (tmp_path / "queued").read_text() == "requeue 70_3\n"
    script.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level("INFO"):
        requeue_slurm_job()
    assert "could not queue job 70_3 again" in caplog.text
