"""A run that is killed anywhere and continued ends bit for bit where the uninterrupted run ends."""

import os
import random
import time
from pathlib import Path

import pytest
import torch
from fits import (
    add_callback,
    assert_equal_runs,
    differences,
    fit,
    last_checkpoint,
    log_of,
    metrics,
    steps_seen,
    write_config,
)
from resume_child import finish, start
from tiny_shards import write_tiny_shards


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_tiny_shards(folder / "shards", train=(5, 4), validation=(3, 2))
    return folder


@pytest.fixture(scope="module")
def whole(base):
    """The uninterrupted run."""
    config = write_config(base / "whole")
    assert fit(config) == [0], log_of(config)
    return base / "whole"


def kill_and_continue(folder: Path, at: str, number: int, *arguments: str, processes: int = 1, **changes) -> str:
    """Kill a run at a point, continue it with `auto`, and return what the continued run printed."""
    config = write_config(folder, **changes)
    killed = fit(add_callback(config, "resume_child.Kill", at=at, number=number), processes=processes)
    assert -9 in killed, log_of(config)
    assert fit(config, "--ckpt_path", "auto", *arguments, processes=processes, log="again") == [0] * processes, log_of(
        config, "again"
    )
    return log_of(config, "again")


@pytest.mark.parametrize(
    ("at", "number"),
    [
        ("batch start", 8),  # mid-epoch; the last save was at step 6, whose validation was done
        ("before step", 2),  # before the first save
        ("epoch end", 1),  # after the last batch of an epoch, which was saved at step 4
        ("saving", 4),  # half of a checkpoint on the disk
        ("saved, not renamed", 3),  # a whole checkpoint under a temporary name
        ("validation", 5),  # in the middle of the validation after step 6, which was saved before it
        ("validation end", 2),
    ],
)
def test_a_killed_run_ends_where_the_uninterrupted_one_ends(base, whole, at, number):
    folder = base / f"{at}-{number}".replace(" ", "-")
    log = kill_and_continue(folder, at, number)
    assert_equal_runs(folder, whole)
    assert ("starting at step 0" in log) == (at == "before step")
    assert "not resumable" not in log, "Lightning's warning does not know that the data module remembers its place"
    leftover = list((folder / "logs" / "run-000" / "checkpoints").glob(".writing-*"))
    assert leftover == [], "an unfinished file stayed behind"


def test_loader_workers_may_change(base, whole):
    folder = base / "workers"
    kill_and_continue(folder, "batch start", 8, "--data.workers", "0", data__workers=2)
    assert_equal_runs(folder, whole)


def test_two_processes(base):
    changes = {"data__batch_size": 1}
    config = write_config(base / "two-whole", **changes)
    assert fit(config, processes=2) == [0, 0], log_of(config)
    kill_and_continue(base / "two", "validation", 3, processes=2, **changes)
    assert_equal_runs(base / "two", base / "two-whole", processes=2)
    assert "continuing from" in log_of(base / "two" / "config.yaml", "again")
    assert "continuing from" not in (base / "two" / "again-1.log").read_text(), "one process says it"


def test_gradient_accumulation_and_validation_at_epoch_ends(base):
    changes = {
        "trainer__accumulate_grad_batches": 3,
        "trainer__val_check_interval": 1.0,
        "trainer__check_val_every_n_epoch": 1,
        "checkpoints__every_steps": 1,
    }
    config = write_config(base / "accumulate-whole", **changes)
    assert fit(config) == [0], log_of(config)
    for at, number in (("validation", 4), ("batch start", 15)):
        folder = base / f"accumulate-{at}".replace(" ", "-")
        kill_and_continue(folder, at, number, **changes)
        assert_equal_runs(folder, base / "accumulate-whole")


@pytest.mark.parametrize(("interval", "batch", "best", "validation"), [(2, 3, [], 8), (6, 7, [2], 2)])
def test_what_is_saved_between_two_batches_of_a_step_takes_its_batches_again(base, interval, batch, best, validation):
    """Steps are batches 1-3, 4 (the end of an epoch), 5-7, 8 ...; validations fall after batch 2 or 6."""
    changes = {
        "trainer__accumulate_grad_batches": 3,
        "trainer__val_check_interval": interval,
        "checkpoints__every_steps": None,
    }
    whole = write_config(base / f"within-{interval}-whole", **changes)
    assert fit(whole) == [0], log_of(whole)

    killed = write_config(base / f"within-{interval}-killed", **changes)
    assert -9 in fit(add_callback(killed, "resume_child.Kill", at="batch start", number=batch)), log_of(killed)
    saved = list((killed.parent / "logs" / "run-000").glob("checkpoints/*"))
    assert [torch.load(path, weights_only=True)["global_step"] for path in saved] == best, "none before the first step"

    stopped = write_config(base / f"within-{interval}-stopped", **changes)
    stop = add_callback(stopped, "resume_child.SignalSelf", at="validation", number=validation)
    assert fit(stop) == [143], log_of(stopped)
    assert (stopped.parent / "logs" / "run-000" / "checkpoints" / "step-00000002.ckpt").is_file()

    for config in (killed, stopped):
        assert fit(config, "--ckpt_path", "auto", log="again") == [0], log_of(config, "again")
        assert_equal_runs(config.parent, whole.parent)


def test_a_run_without_a_readable_checkpoint_is_kept_and_another_started(base):
    config = write_config(base / "ruined")
    folder = base / "ruined" / "logs" / "run-000"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"half a file")
    (folder / "metrics.csv").write_text("step,epoch,seconds,train/loss\n7,0,1.0,2.0\n")
    assert fit(config, "--ckpt_path", "auto", "--trainer.max_steps", "1") == [0], log_of(config)
    assert "skipping" in log_of(config)
    assert "starting at step 0" in log_of(config)
    assert (folder / "metrics.csv").read_text().endswith("7,0,1.0,2.0\n")
    assert (base / "ruined" / "logs" / "run-001" / "checkpoints" / "step-00000001.ckpt").is_file()


def test_an_unreadable_newest_checkpoint_is_skipped_and_named(base, whole):
    folder = base / "unreadable"
    config = write_config(folder)
    assert -9 in fit(add_callback(config, "resume_child.Kill", at="batch start", number=8))
    newest = folder / "logs" / "run-000" / "checkpoints" / "step-00000006.ckpt"
    best = newest.with_name("best.ckpt")
    for path in (newest, best):
        path.write_bytes(path.read_bytes()[:2000])
    assert fit(config, "--ckpt_path", "auto", log="again") == [0]
    assert f"skipping {newest}" in log_of(config, "again")
    assert f"skipping {best}" in log_of(config, "again")
    assert "continuing from" in log_of(config, "again")
    assert "step-00000004.ckpt" in log_of(config, "again")
    assert_equal_runs(folder, whole)


def test_a_finished_run_is_left_as_it_is(whole):
    before = metrics(whole), last_checkpoint(whole)
    assert fit(whole / "config.yaml", "--ckpt_path", "auto", log="again") == [0]
    assert metrics(whole) == before[0]
    assert differences(last_checkpoint(whole), before[1]) == []


def test_a_fresh_fit_gets_a_folder_of_its_own(whole):
    assert fit(whole / "config.yaml", "--trainer.max_steps", "1", log="second") == [0]
    assert (whole / "logs" / "run-001" / "metrics.csv").is_file()
    assert len(metrics(whole)) > 5, "the first run's metrics were touched"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--data.batch_size", "1"), "batch_size 2 -> 1"),
        (("--data.seed", "6"), "seed 5 -> 6"),
        (("--data.crop_s", "0.12"), "crop_s 0.2 -> 0.12"),
    ],
)
def test_what_would_change_the_batches_is_refused(whole, change, message):
    checkpoint = whole / "logs" / "run-000" / "checkpoints" / "best.ckpt"
    log = f"refused{change[0]}"
    assert fit(whole / "config.yaml", "--ckpt_path", str(checkpoint), *change, log=log) == [2]
    assert message in log_of(whole / "config.yaml", log)
    assert "Traceback" not in log_of(whole / "config.yaml", log)


def test_changes_are_allowed_when_exactness_is_given_up(base, whole):
    checkpoint = whole / "logs" / "run-000" / "checkpoints" / "best.ckpt"
    config = write_config(base / "changed")
    arguments = ["--ckpt_path", str(checkpoint), "--data.batch_size", "1", "--data.allow_changes", "true"]
    assert fit(config, *arguments) == [0], log_of(config)
    assert last_checkpoint(base / "changed")["TokenShards"]["batch_size"] == 1


def test_another_number_of_processes_is_refused(base, whole):
    checkpoint = whole / "logs" / "run-000" / "checkpoints" / "best.ckpt"
    codes = fit(whole / "config.yaml", "--ckpt_path", str(checkpoint), processes=2, log="processes")
    assert set(codes) == {2}
    assert "processes 1 -> 2" in log_of(whole / "config.yaml", "processes")


@pytest.mark.parametrize(("at", "number", "saved"), [("batch start", 6, 6), ("validation", 4, 6)])
def test_sigterm_saves_and_leaves_with_143(base, whole, at, number, saved):
    folder = base / f"sigterm-{at}".replace(" ", "-")
    config = write_config(folder, checkpoints__every_steps=None)
    assert fit(add_callback(config, "resume_child.SignalSelf", at=at, number=number)) == [143], log_of(config)
    assert (folder / "logs" / "run-000" / "checkpoints" / f"step-{saved:08d}.ckpt").is_file()
    assert "continue it with --ckpt_path auto" in log_of(config)
    assert fit(config, "--ckpt_path", "auto", log="again") == [0], log_of(config, "again")
    assert_equal_runs(folder, whole)


def test_slurms_warning_saves_and_queues_the_job_again_which_continues_by_itself(base, whole):
    folder = base / "slurm"
    config = write_config(folder, checkpoints__every_steps=None)
    (folder / "bin").mkdir()
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/queued\n')
    scontrol.chmod(0o755)
    task = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
    task |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"}
    task["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    warned = add_callback(config, "resume_child.SignalSelf", at="batch start", number=6, name="SIGUSR1")
    assert fit(warned, **task) == [143], log_of(config)
    assert (folder / "queued").read_text() == "requeue 77\n"
    assert [p.name for p in (folder / "logs" / "run-000" / "checkpoints").glob("step-*")] == ["step-00000006.ckpt"]
    assert fit(config, log="again", SLURM_RESTART_COUNT="1", **task) == [0], log_of(config, "again")
    assert "continuing from" in log_of(config, "again")
    assert_equal_runs(folder, whole)


def test_sigterm_to_one_of_two_processes_stops_both(base):
    config = write_config(base / "sigterm-two", data__batch_size=1, checkpoints__every_steps=None)
    running = start(["fit", "--config", str(config), "--trainer.max_steps", "100000"], config.parent / "run", 2)
    trace = base / "sigterm-two" / "trace-1.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (trace.is_file() and len(trace.read_text().splitlines()) > 3):
        time.sleep(0.05)
    running[1].terminate()
    assert finish(running) == [143, 143], log_of(config)
    assert len(list((base / "sigterm-two" / "logs" / "run-000" / "checkpoints").glob("step-*.ckpt"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_random_kills(base, processes, workers):
    """The run is killed at random moments until it has died 20 times, and continued each time."""
    steps = "60"
    changes = {"data__batch_size": 1, "data__workers": workers}
    name = f"random-{processes}-{workers}"
    whole = write_config(base / f"{name}-whole", **changes)
    begin = time.monotonic()
    assert fit(whole, "--trainer.max_steps", steps, processes=processes) == [0] * processes, log_of(whole)
    duration_s = time.monotonic() - begin
    config = write_config(base / name, **changes)
    generator, kills = random.Random(processes * 10 + workers), 0
    while True:
        running = start(
            ["fit", "--config", str(config), "--trainer.max_steps", steps, "--ckpt_path", "auto"],
            config.parent / "run",
            processes,
        )
        if kills < 20:
            time.sleep(generator.uniform(0.1, duration_s))
            victim = running[generator.randrange(processes)]
            if victim.is_alive():
                victim.kill()
                kills += 1
        codes = finish(running)
        if codes == [0] * processes:
            if kills >= 20:
                break
            for path in (config.parent / "logs" / "run-000" / "checkpoints").glob("*.ckpt"):
                path.unlink()  # finished too early: take it back to the start, and go on killing
        assert set(codes) <= {0, -9, 1}, log_of(config)
    final = last_checkpoint(base / name, int(steps)), last_checkpoint(base / f"{name}-whole", int(steps))
    assert differences(*final) == []
    for rank in range(processes):
        assert steps_seen(base / name, rank) == steps_seen(base / f"{name}-whole", rank)
    # A kill within the milliseconds between a save and the step's row loses that row; nothing else may differ.
    rows, expected = metrics(base / name), metrics(base / f"{name}-whole")
    assert [row for row in expected if row in rows] == rows
    assert len(rows) >= len(expected) - 20
