"""Which checkpoints are kept; files are atomic and read as data only; signals set a flag, and SLURM's queue."""

import os
import resource
import signal
import stat
import threading

import lightning.pytorch as pl
import pytest
import torch
from tiny_shards import write_tiny_shards
from tiny_trainer import Line, trainer_of

from hafm_lightning.callbacks import AtomicCheckpointIO, Checkpoints
from hafm_lightning.callbacks.checkpoints import requeue_slurm_job
from hafm_lightning.data_modules import TokenShards
from hafm_lightning.errors import RequestError
from hafm_lightning.training.signals import StopSignals


@pytest.fixture
def data(tmp_path):
    return TokenShards(str(write_tiny_shards(tmp_path / "shards", train=(8,))), batch_size=2)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    writer, path = AtomicCheckpointIO(), tmp_path / "folder" / "a.ckpt"
    writer.save_checkpoint({"weights": torch.arange(3)}, path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, "a checkpoint is readable to those who may read"

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint({"weights": torch.zeros(3)}, path)
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    assert writer.load_checkpoint(path)["weights"].tolist() == [0, 1, 2]
    writer.remove_checkpoint(path)
    assert not path.exists()


def test_a_disk_that_fills_up_is_an_error_of_the_disk(tmp_path):
    """The limit on a file's size ends a write as a full disk does: in the middle, from below torch.save."""
    writer, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    writer.save_checkpoint({"weights": torch.arange(3)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*a\.ckpt"):
            writer.save_checkpoint({"weights": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert writer.load_checkpoint(path)["weights"].tolist() == [0, 1, 2]


def test_the_temporary_file_is_in_the_same_folder_whatever_tmpdir_says(tmp_path, monkeypatch):
    seen = []
    save = torch.save
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr(torch, "save", lambda content, file: (seen.extend(tmp_path.iterdir()), save(content, file)))
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert len(seen) == 1
    assert seen[0].name.startswith(".writing-")


def test_only_data_is_read(tmp_path):
    hostile = tmp_path / "hostile.ckpt"
    torch.save({"run": os.system}, hostile)
    for path in (hostile, tmp_path / "absent.ckpt", "https://example.org/a.ckpt"):
        with pytest.raises(RequestError):
            AtomicCheckpointIO().load_checkpoint(path)


def test_the_newest_and_the_best_are_kept(data, tmp_path):
    class Growing(Line):
        def validation_step(self, batch, index):
            self.log("val/loss", float(self.global_step), batch_size=len(batch))

    keeper = Checkpoints(every_steps=2, keep=2)
    trainer = trainer_of(tmp_path, keeper, max_steps=7, val_check_interval=2, check_val_every_n_epoch=None)
    trainer.fit(Growing(), datamodule=data)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "step-00000006.ckpt", "step-00000007.ckpt"]
    assert torch.load(keeper.best_model_path, weights_only=True)["global_step"] == 2, "the lowest loss was the first"

    keeper = Checkpoints(every_steps=None, every_minutes=1e-9, keep=9, monitor="val/loss", mode="max")
    trainer_of(tmp_path / "time", keeper, max_steps=3, val_check_interval=1).fit(Growing(), datamodule=data)
    names = sorted(path.name for path in (tmp_path / "time" / "checkpoints").iterdir())
    assert names == ["best.ckpt", "step-00000001.ckpt", "step-00000002.ckpt", "step-00000003.ckpt"]
    assert torch.load(keeper.best_model_path, weights_only=True)["global_step"] == 3


def test_a_validation_that_is_no_number_is_no_best_one(data, tmp_path):
    class Recovering(Line):
        def validation_step(self, batch, index):
            self.log("val/loss", float("nan") if self.global_step < 2 else 5.0, batch_size=len(batch))

    keeper = Checkpoints(every_steps=None)
    trainer = trainer_of(tmp_path, keeper, max_steps=3, val_check_interval=1, check_val_every_n_epoch=None)
    trainer.fit(Recovering(), datamodule=data)
    assert keeper.best_score == 5.0
    assert torch.load(keeper.best_model_path, weights_only=True)["global_step"] == 2


def test_a_trial_run_saves_nothing(data, tmp_path):
    trainer_of(tmp_path, Checkpoints(), fast_dev_run=True).fit(Line(), datamodule=data)
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def handler():
    """A handler of SIGTERM and SIGUSR1 that only counts, in place of pytest's."""
    seen = []
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in numbers}
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


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 143)])
def test_each_signal_saves_and_has_its_exit_code(data, handler, tmp_path, monkeypatch, name, code):
    """SIGHUP ended the process at once, and Ctrl-C saved nothing."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr("hafm_lightning.callbacks.checkpoints.requeue_slurm_job", lambda: None)

    class Sends(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.Signals[name])

    with pytest.raises(SystemExit) as stop:
        trainer_of(tmp_path, Checkpoints(every_steps=None), Sends()).fit(Line(), datamodule=data)
    assert stop.value.code == code
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000003.ckpt"]


def test_a_second_ctrl_c_stops_at_once(handler):
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signals.restore()


def test_a_program_that_ignores_a_closed_terminal_goes_on_ignoring_it(handler):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGHUP)
    signals.restore()
    assert signals.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("where", ["first bytes", "end"])
def test_ctrl_c_in_the_middle_of_a_write_is_ctrl_c(tmp_path, monkeypatch, where):
    """torch.save turned it into a RuntimeError: a traceback, and exit code 1."""
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"before")
    whole_save = torch.save

    class Interrupted:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            if where == "first bytes":
                raise KeyboardInterrupt
            return self.file.write(content)

        def flush(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", lambda content, file: whole_save(content, Interrupted(file)))
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_row_of_a_saved_step_is_logged_before_the_save_and_once(data, tmp_path):
    """A kill between the save and Lightning's log lost the row: the continued run does not make it again."""
    from hafm_lightning.callbacks import CsvLog

    rows_at_save = []

    class Looks(Checkpoints):
        def _save(self, trainer, name):
            text = (tmp_path / "metrics.csv").read_text() if (tmp_path / "metrics.csv").is_file() else ""
            rows_at_save.append((trainer.global_step, len(text.splitlines()) - 1))
            super()._save(trainer, name)

    log = CsvLog(str(tmp_path))
    trainer_of(tmp_path, Looks(every_steps=2, monitor=None), logger=log, limit_val_batches=0).fit(
        Line(), datamodule=data
    )
    assert [step == rows for step, rows in rows_at_save] == [True] * len(rows_at_save)
    assert [step for step, _ in rows_at_save][:3] == [2, 4, 6]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(8))
