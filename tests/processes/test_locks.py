"""Locks: one owner at a time, named, freed by death, also where the file system has no locks."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hafm_lightning.errors import RequestError
from hafm_lightning.processes.locks import LOCK_NAME, Lock, held, one_at_a_time

HOLD = """
import os, sys, time
from pathlib import Path
if {broken}:
    import fcntl
    def flock(*_):
        raise OSError({broken}, os.strerror({broken}))
    fcntl.flock = flock
from hafm_lightning.processes.locks import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def holder(path: Path, broken: int = 0):
    """Another process that holds the lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(broken=broken), str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "held"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_process_is_refused_by_name_until_it_is_killed(tmp_path):
    path = tmp_path / LOCK_NAME
    with holder(path) as process:
        lock = Lock(path)
        assert lock.is_held()
        with pytest.raises(RequestError) as refused, held(path, "this folder", "wait for it"):
            pass
        first, second = str(refused.value).splitlines()
        assert first.startswith(f"this folder is in use by process {process.pid} on {socket.gethostname()} since 20")
        assert second == "wait for it"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not lock.is_held()
    assert lock.acquire(details={"a": "b"})
    assert (lock.owner().pid, lock.owner().details) == (os.getpid(), {"a": "b"})
    lock.release()
    assert lock.owner() is None
    assert [entry.name for entry in tmp_path.iterdir()] == [LOCK_NAME]


def test_two_locks_of_one_process_exclude_each_other(tmp_path):
    first, second = Lock(tmp_path / LOCK_NAME), Lock(tmp_path / LOCK_NAME)
    assert first.acquire()
    assert not second.acquire(0)
    first.release(erase=True)
    assert list(tmp_path.iterdir()) == []
    assert second.acquire(0)
    assert not first.acquire(0)
    second.release()


def test_a_child_that_was_forked_does_not_keep_a_dead_owners_lock(tmp_path):
    """As the loader workers of a fit that is killed would."""
    path = tmp_path / LOCK_NAME
    code = HOLD.format(broken=0).replace(
        "print(", "child = os.fork()\nif child == 0: time.sleep(20); os._exit(0)\nprint("
    )
    code = code.replace('print("held"', 'print("held", child')
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[1])
    try:
        assert Lock(path).is_held()
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        deadline = time.monotonic() + 10  # the child drops the lock when it first runs
        while Lock(path).is_held() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Lock(path).is_held()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_gets_a_marker_file_and_a_line(tmp_path, monkeypatch, capsys, number):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(tmp_path / LOCK_NAME)
    assert lock.acquire()
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in line
    assert "remove that file if this process is killed on another host" in line
    assert str(lock.marker) in line
    assert lock.marker.is_file()
    assert not Lock(tmp_path / LOCK_NAME).acquire(0)
    words = rf"process {os.getpid()} on .*(\n.*){{2}}remove {lock.marker}"
    with pytest.raises(RequestError, match=words), held(tmp_path / LOCK_NAME, "this folder", "wait for it"):
        pass
    lock.release()
    assert not lock.marker.exists()
    with holder(lock.path, number) as process:
        assert not lock.acquire(0)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert lock.acquire(5), "the marker of a process that died on this host is taken over"
    lock.release()


def test_other_errors_of_the_system_are_not_taken_for_a_missing_lock(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        Lock(tmp_path / LOCK_NAME).acquire()


def test_a_damaged_record_names_nobody(tmp_path):
    lock = Lock(tmp_path / LOCK_NAME)
    assert lock.acquire()
    record = tmp_path / f"{LOCK_NAME}.json"
    for text in ("", "[]", '{"pid": "x"}', '{"pid": 1, "host": "h", "since": "s", "details": 3}'):
        record.write_text(text)
        assert lock.owner() is None
        assert "another process" in str(lock.refusal("this folder", "wait for it"))
    lock.release()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def denied(*_: object, **__: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Lock, "acquire", denied)
    with pytest.raises(RequestError, match="cannot be written"), held(tmp_path / LOCK_NAME, "x", "y"):
        pass


def add_ones(path: Path, counter: Path, times: int) -> None:
    for _ in range(times):
        with one_at_a_time(path, erase=True):
            number = int(counter.read_text())
            time.sleep(0.002)
            counter.write_text(str(number + 1))


def test_waiting_processes_come_one_after_the_other_though_the_file_is_removed_each_time(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_ones, args=(tmp_path / LOCK_NAME, counter, 8)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counter.read_text() == "24"
