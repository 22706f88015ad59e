"""A run folder belongs to one fit: fits that start together, continue one run, are killed, have several processes."""

import csv
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from fits import add_callback, fit, log_of, write_config
from resume_child import finish, start
from tiny_shards import write_tiny_shards

from hafm_lightning.cli import main
from hafm_lightning.cli.fit.runs import (
    LAUNCH_VARIABLE,
    best_checkpoint,
    claimed_run,
    joined_run,
    newest_checkpoint,
    newest_run,
    next_run,
)
from hafm_lightning.errors import RequestError
from hafm_lightning.processes.locks import LOCK_NAME, Lock

STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    write_tiny_shards(folder / "shards", train=(5, 4), validation=(3, 2))
    return folder


@pytest.fixture
def config(base, request):
    return write_config(
        base / re.sub(r"\W", "-", request.node.name), trainer__max_steps=STEPS, trainer__val_check_interval=2
    )


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def rate_of(seed: int) -> float:
    return 0.01 * seed


def own_settings(seed: int) -> list[str]:
    """A seed, and a learning rate that the checkpoint shows, by which a run can be told."""
    return ["--seed_everything", str(seed), "--model.learning_rate", str(rate_of(seed))]


def seed_of(run: Path) -> int:
    """The seed of a run whose configuration, metrics and checkpoints belong together."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    seed = saved["seed_everything"]
    assert saved["model"]["init_args"]["learning_rate"] == pytest.approx(rate_of(seed))
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best.ckpt", "step-00000002.ckpt", "step-00000004.ckpt"]
    for name in names:
        content = torch.load(run / "checkpoints" / name, weights_only=True)
        assert content["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(rate_of(seed))
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(LOCK_NAME)) == [LOCK_NAME]
    return seed


def test_four_fits_that_start_at_once_have_four_run_folders(config):
    logs = config.parent / "logs"
    running = [
        start(["fit", "--config", str(config), *own_settings(seed)], config.parent / f"fit-{seed}")
        for seed in (1, 2, 3, 4)
    ]
    assert [finish(processes) for processes in running] == [[0]] * 4, log_of(config, "fit-4")
    assert sorted(path.name for path in logs.iterdir()) == ["run-000", "run-001", "run-002", "run-003"]
    assert sorted(seed_of(run) for run in logs.iterdir()) == [1, 2, 3, 4]


def test_two_fits_of_two_processes_that_start_at_once_have_two_run_folders(config):
    logs = config.parent / "logs"
    arguments = ["fit", "--config", str(config), "--data.batch_size", "1"]
    running = [start([*arguments, *own_settings(n)], config.parent / f"fit-{n}", processes=2) for n in (1, 2)]
    assert [finish(processes) for processes in running] == [[0, 0]] * 2, log_of(config, "fit-1")
    assert sorted(path.name for path in logs.iterdir()) == ["run-000", "run-001"]
    assert sorted(seed_of(run) for run in logs.iterdir()) == [1, 2]


def test_a_run_that_lives_is_refused_and_one_that_was_killed_is_continued(config):
    run, waiting = config.parent / "logs" / "run-000", config.parent / "waiting"
    slow = add_callback(config, "resume_child.Wait", number=3, file=str(waiting))
    (first,) = start(["fit", "--config", str(slow), "--data.workers", "1"], config.parent / "first")
    try:
        deadline = time.monotonic() + 60
        while not waiting.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert waiting.exists(), log_of(config, "first")
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for number, asked in enumerate(("auto", str(run / "checkpoints" / "step-00000002.ckpt"))):
            assert fit(config, "--ckpt_path", asked, log=f"refused-{number}") == [2]
            lines = log_of(config, f"refused-{number}").splitlines()
            assert len(lines) <= 5
            owner = f"process {first.pid} on {socket.gethostname()} since "
            assert lines[0].startswith(f"error: {run} is in use by {owner}"), lines
        assert fit(config, "--ckpt_path", "auto", processes=2, log="refused") == [2, 2]
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        assert [path.name for path in run.parent.iterdir()] == ["run-000"], "a refused request leaves nothing"
        first.kill()
        first.join()
        assert fit(config, "--ckpt_path", "auto", log="again") == [0], log_of(config, "again")
        assert "continuing from" in log_of(config, "again")
        assert (run / "checkpoints" / "step-00000004.ckpt").is_file()
    finally:
        first.kill()


@pytest.mark.slow
def test_processes_that_lightning_starts_join_the_run_of_the_first(config, repository):
    arguments = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1", *own_settings(5)]
    path = f"{repository / 'src'}:{repository / 'tests' / 'support'}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hafm_lightning", "fit", "--config", str(config), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (run,) = (config.parent / "logs").iterdir()
    assert run.name == "run-000"
    assert seed_of(run) == 5
    assert (config.parent / "trace-1.jsonl").is_file()


def test_a_file_system_without_locks_is_told_and_the_fit_runs(config, monkeypatch, capsys):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(["fit", "--config", str(config), *own_settings(6)]) == 0
    assert ".lock.held" in capsys.readouterr().err
    assert seed_of(config.parent / "logs" / "run-000") == 6


def test_several_processes_of_a_run_of_one_are_refused(config, monkeypatch, capsys):
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29999")):
        monkeypatch.setenv(name, value)
    assert main(["fit", "--config", str(config)]) == 2
    assert "trainer.devices" in capsys.readouterr().err
    assert not (config.parent / "logs").exists()


# --- claims alone ---


def test_names_that_are_taken_are_passed_over(tmp_path):
    (tmp_path / "run-000").write_text("a file")
    (tmp_path / "run-001").symlink_to(tmp_path / "nowhere")
    with claimed_run(tmp_path, None) as claim:
        assert (claim.run.name, claim.checkpoint) == ("run-002", None)
        assert claim.run.is_dir()
        (claim.run / "metrics.csv").touch()
    assert sorted(path.name for path in claim.run.iterdir()) == [LOCK_NAME, "metrics.csv"]


def test_a_claim_that_was_not_used_leaves_nothing(tmp_path):
    root = tmp_path / "logs" / "deep" / "tiny"
    with claimed_run(root, None) as claim:
        assert (claim.run.parent, claim.run.is_dir()) == (root, True)
    assert list(tmp_path.iterdir()) == []


def test_claims_of_many_threads_are_all_different(tmp_path):
    found, barrier = [], threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        with claimed_run(tmp_path / "root", None) as claim:
            found.append(claim.run.name)
            barrier.wait(30)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [f"run-{number:03d}" for number in range(8)]


@pytest.mark.parametrize(
    "launch",
    [
        {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": "29500", "RANK": "1", "LOCAL_RANK": "1"},
        {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "29500", "LOCAL_RANK": "1"},
    ],
)
def test_the_other_processes_of_a_launch_find_the_first_ones_run(tmp_path, monkeypatch, launch):
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run-000").mkdir()
    stale = Lock(tmp_path / "run-000" / LOCK_NAME)  # of a launch by the same name that was killed
    assert stale.acquire(details={"launch": "/".join(launch.values()), "checkpoint": "old"})
    record = (tmp_path / "run-000" / f"{LOCK_NAME}.json").read_bytes()
    stale.release()
    (tmp_path / "run-000" / f"{LOCK_NAME}.json").write_bytes(record)

    found = []
    waiting = threading.Thread(target=lambda: found.append(joined_run(tmp_path, None, wait_s=20)))
    with monkeypatch.context() as first:
        first.delenv(LAUNCH_VARIABLE, raising=False)
        waiting.start()
        time.sleep(0.5)
        assert not found
        with claimed_run(tmp_path, None) as claim:
            first.delenv(LAUNCH_VARIABLE)  # threads share what processes would not
            waiting.join(20)
    assert found == [claim]


def test_other_processes_are_refused_where_another_fit_works_or_no_claim_comes(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "a")
    with pytest.raises(RequestError, match=rf"no run below {tmp_path} within 0 s"):
        joined_run(tmp_path, None, wait_s=0.3)
    (tmp_path / "run-000").mkdir()
    other = Lock(tmp_path / "run-000" / LOCK_NAME)
    assert other.acquire(details={"launch": "another"})
    with pytest.raises(RequestError, match=r"run-000 is in use by process"):
        joined_run(tmp_path, "auto", wait_s=20)
    other.release()


def test_run_folders(tmp_path):
    assert next_run(tmp_path).name == "run-000"
    (tmp_path / "run-009").mkdir()
    (tmp_path / "run-010").mkdir()
    (tmp_path / "run-x").mkdir()
    assert newest_run(tmp_path).name == "run-010"
    assert next_run(tmp_path).name == "run-011"
    folder = tmp_path / "run-010" / "checkpoints"
    assert newest_checkpoint(folder.parent) is None
    folder.mkdir()
    for name, step in (("step-00000002.ckpt", 2), ("step-00000010.ckpt", 10), ("best.ckpt", 10)):
        torch.save({"loops": {}, "global_step": step}, folder / name)
    assert newest_checkpoint(folder.parent) == folder / "step-00000010.ckpt"
    torch.save({"loops": {}, "global_step": 15}, folder / "best.ckpt")
    assert newest_checkpoint(folder.parent) == folder / "best.ckpt", "a best one may be the newest"
    torch.save({"state_dict": {}}, folder / "best.ckpt")
    (folder / "step-00000010.ckpt").write_bytes(b"")
    assert newest_checkpoint(folder.parent) == folder / "step-00000002.ckpt"
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(RequestError, match="no checkpoint under"):
        best_checkpoint(tmp_path)
