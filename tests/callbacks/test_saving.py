"""Which checkpoints are kept, averaged weights, the CSV log, W&B offline, and what the dashboard measures."""

import csv
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_shards import write_tiny_shards
from tiny_trainer import Line, trainer_of

from hafm_lightning.callbacks import (
    EMA,
    Checkpoints,
    CsvLog,
    Dashboard,
    StepProgress,
    WandbDashboard,
)
from hafm_lightning.callbacks.dashboard import PAPER_VALUES, peak_flops
from hafm_lightning.callbacks.exact_resume import TRAINING_WEIGHTS
from hafm_lightning.callbacks.loggers import chosen_mode, read_rows
from hafm_lightning.data_modules import TokenShards
from hafm_lightning.errors import RequestError


@pytest.fixture
def data(tmp_path):
    return TokenShards(str(write_tiny_shards(tmp_path / "shards", train=(8,))), batch_size=2)


# --- files ----------------------------------------------------------------------------------------------------


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


# --- averaged weights -----------------------------------------------------------------------------------------


def test_the_average_is_validated_and_saved_and_the_weights_train_on(data, tmp_path):
    stage = Line()
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer_of(tmp_path, EMA(decay=0.6), Checkpoints(every_steps=5, keep=9), **settings).fit(stage, datamodule=data)

    plain = [0.8 ** (step + 1) for step in range(8)]  # gradient 2 w, rate 0.1
    assert stage.walked == pytest.approx(plain, rel=1e-5), "averaging must not change the training"
    average, averages = 1.0, []
    for update, weight in enumerate(plain):
        decay = min(0.6, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    assert stage.validated[::3] == pytest.approx(averages[1::2], rel=1e-5)  # three validation batches each time
    saved = torch.load(tmp_path / "checkpoints" / "step-00000005.ckpt", weights_only=True)
    assert float(saved["state_dict"]["weight"]) == pytest.approx(averages[4], rel=1e-5)
    assert float(saved[TRAINING_WEIGHTS]["weight"]) == pytest.approx(plain[4], rel=1e-5)
    best = torch.load(
        tmp_path / "checkpoints" / "best.ckpt", weights_only=True
    )  # saved while the average was swapped in
    assert float(best["state_dict"]["weight"]) == pytest.approx(averages[7], rel=1e-5)
    assert float(best[TRAINING_WEIGHTS]["weight"]) == pytest.approx(plain[7], rel=1e-5)


def test_a_run_with_averages_is_not_continued_without(data, tmp_path):
    trainer_of(tmp_path, EMA(), Checkpoints(monitor=None), max_steps=2).fit(Line(), datamodule=data)
    checkpoint = tmp_path / "checkpoints" / "step-00000002.ckpt"
    with pytest.raises(RequestError, match=r"add hafm_lightning\.callbacks\.EMA"):
        trainer_of(tmp_path, max_steps=4).fit(Line(), datamodule=data, ckpt_path=checkpoint)
    for settings in ({"decay": 1.0}, {"every_steps": 0}):
        with pytest.raises(RequestError):
            EMA(**settings)


# --- logs -----------------------------------------------------------------------------------------------------


def test_the_csv_grows_columns_and_survives_a_continued_run(tmp_path):
    first = CsvLog(str(tmp_path))
    first.log_metrics({"train/loss": 3.0, "epoch": 0}, 0)
    first.log_metrics({"val/loss": 2.5, "epoch": 0}, 0)
    first.log_metrics({"train/loss": 2.0, "epoch": 0}, 1)
    first.log_metrics({"train/loss": 1.5, "epoch": 0}, 2)
    with first.path.open("a") as file:
        file.write("3,0,0.1")  # a row that a kill cut short

    again = CsvLog(str(tmp_path))
    again.log_metrics({"train/loss": 2.0, "epoch": 0}, 1)
    again.log_metrics({"val/loss": 1.0, "epoch": 0}, 1)
    rows = [{k: v for k, v in row.items() if v and k != "seconds"} for row in read_rows(again.path)]
    assert rows == [
        {"step": "0", "epoch": "0", "train/loss": "3.0"},
        {"step": "0", "epoch": "0", "val/loss": "2.5"},
        {"step": "1", "epoch": "0", "train/loss": "2.0"},
        {"step": "1", "epoch": "0", "val/loss": "1.0"},
    ]
    seconds = [float(row["seconds"]) for row in read_rows(again.path)]
    assert seconds == sorted(seconds), "the clock goes on where the first part stopped"


WANDB_RUN = """
import sys
from pathlib import Path
import lightning.pytorch as pl
sys.path.insert(0, sys.argv[1])
from tiny_trainer import Line, trainer_of
from hafm_lightning.callbacks import WandbDashboard
from hafm_lightning.data_modules import TokenShards
for part in range(2):
    logger = WandbDashboard(project="test")
    logger.use_run_folder(Path(sys.argv[2]))
    trainer_of(sys.argv[2], logger=logger, max_steps=2).fit(Line(), datamodule=TokenShards(sys.argv[3], batch_size=2))
    logger.experiment.finish()
    print("ID", logger.version, logger.chosen_mode)
"""


def test_wandb_without_a_key_logs_offline_and_keeps_its_id(tmp_path, data):
    """In a process of its own: W&B starts a service that outlives the run."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    clean |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(Path(__file__).parents[1] / "support"), str(tmp_path / "run"), data.root],
        capture_output=True,
        text=True,
        check=True,
        env=clean,
        timeout=300,
    )
    said = [line for line in (done.stderr + done.stdout).splitlines() if "W&B" in line or "wandb:" in line]
    assert len(said) == 2, "one line a run says all"
    assert all("no key" in line and "logging offline; `wandb sync" in line for line in said)
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ID ")]
    assert [mode for _, mode in told] == ["offline", "offline"]
    assert told[0] == told[1], "a continued run must go on in the same curves"
    logged = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{told[0][0]}"))
    assert logged
    assert all(list(path.glob("*.wandb")) for path in logged)


def test_the_mode_of_wandb_is_settled_by_key_and_wish(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert chosen_mode("auto")[0] == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    assert chosen_mode("auto")[0] == "online"
    assert chosen_mode("offline") == ("offline", "mode is offline")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert chosen_mode("auto") == ("disabled", "WANDB_MODE is disabled")
    assert WandbDashboard(mode="disabled").chosen_mode == "disabled"


# --- the progress bar ------------------------------------------------------------------------------------------


def test_the_bar_counts_the_steps_of_the_run(data, tmp_path, monkeypatch):
    bars = []

    class Recording:
        def __init__(self, description, total, unit):
            self.description, self.total, self.unit, self.done, self.notes = description, total, unit, 0, []

        def advance(self, n=1, note=""):
            self.done += n
            self.notes.append(note)

    @contextmanager
    def record(description, total=None, unit=""):
        bars.append(Recording(description, total, unit))
        yield bars[-1]

    monkeypatch.setattr("hafm_lightning.callbacks.step_progress.progress", record)
    settings = {"enable_progress_bar": True, "accumulate_grad_batches": 2, "num_sanity_val_steps": 2}
    saving = Checkpoints(monitor=None)
    trainer = trainer_of(tmp_path, StepProgress(), saving, max_epochs=3, max_steps=-1, **settings)
    trainer.fit(Line(), datamodule=data)
    assert [(bar.description, bar.total, bar.unit, bar.done) for bar in bars] == [("Line", 6, "steps", 6)]
    assert "validating 1/3" in bars[0].notes
    assert bars[0].notes[-1].startswith("validation 0.")

    again = trainer_of(tmp_path, StepProgress(), Checkpoints(monitor=None), max_steps=20, **settings)
    again.fit(Line(), datamodule=data, ckpt_path=tmp_path / "checkpoints" / "step-00000006.ckpt")
    assert (bars[1].description, bars[1].total, bars[1].done) == ("Line from step 6", 14, 14)
    trainer_of(tmp_path, StepProgress(), **settings).validate(Line(), datamodule=data)
    assert [(bar.description, bar.total, bar.done) for bar in bars[2:]] == [("Validating", 3, 3)]


# --- the dashboard --------------------------------------------------------------------------------------------


def test_speed_counts_training_time_alone(data, tmp_path):
    class Slow(Line):
        target = "instrumental_coarse"

        def training_step(self, batch, index):
            time.sleep(0.05)
            return super().training_step(batch, index)

        def validation_step(self, batch, index):
            time.sleep(0.3)

    log = CsvLog(str(tmp_path))
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None, "max_steps": 6}
    trainer_of(tmp_path, Dashboard(), logger=log, **settings).fit(Slow(), datamodule=data)
    rows = [row for row in read_rows(log.path) if row.get("speed/steps_per_s")]
    assert len(rows) == 6
    assert float(rows[0]["seconds"]) > 0.05, "the clock starts with the training, not with the first row"
    for row in rows[1:]:
        speed = float(row["speed/steps_per_s"])
        assert 2 < speed < 20, "a step takes 0.05 s, and validation is no part of it"
        assert float(row["speed/tokens_per_s"]) == pytest.approx(speed * 2 * 4 * 30, rel=1e-3)  # B, K, T of 0.4 s
        assert 0 <= float(row["speed/data_wait"]) < 1
        assert float(row["system/memory_gib"]) > 0.05
        assert float(row["train/learning_rate"]) == pytest.approx(0.1)
        assert "speed/mfu" not in row, "the CPU's peak is not known, so there is nothing to divide by"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_utilisation_divides_the_models_flops_by_the_peak(data, tmp_path, monkeypatch, accumulate):
    class Costed(Line):
        target = "instrumental_coarse"

        def flops_per_step(self, batch):
            return 1e9 * len(batch)

    monkeypatch.setattr("hafm_lightning.callbacks.dashboard.peak_flops", lambda device, precision: 1e12)
    log = CsvLog(str(tmp_path))
    settings = {"max_steps": 4, "accumulate_grad_batches": accumulate}
    trainer_of(tmp_path, Dashboard(), logger=log, **settings).fit(Costed(), datamodule=data)
    rows = [row for row in read_rows(log.path) if row.get("speed/mfu")]
    assert len(rows) == 4
    for row in rows:
        steps = float(row["speed/steps_per_s"])
        assert float(row["speed/mfu"]) == pytest.approx(steps * accumulate * 2e9 / 1e12, rel=1e-3)
        assert float(row["speed/tokens_per_s"]) == pytest.approx(steps * accumulate * 2 * 4 * 30, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "16-mixed", 989),
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756),
        ("NVIDIA A100-SXM4-40GB", "bf16-true", 312),
        ("NVIDIA A40", "16-mixed", 149.7),
        ("NVIDIA A40", "32-true", 37.4),
        ("Some GPU", "32-true", None),
    ],
)
def test_peaks_of_known_devices(monkeypatch, name, precision, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    peak = peak_flops(torch.device("cuda", 0), precision)
    assert peak == (None if tflops is None else pytest.approx(tflops * 1e12))


@pytest.mark.parametrize(("kinds", "shown"), [(("hubert", "encodec"), True), (("offline-semantic", "offline"), False)])
def test_the_papers_values_are_shown_beside_the_papers_tokens_only(data, tmp_path, kinds, shown):
    class SemanticStage(Line):
        tokenizers = {"semantic": {"kind": kinds[0]}, "acoustic": {"kind": kinds[1]}}

    log = CsvLog(str(tmp_path))
    trainer_of(tmp_path, Dashboard(), logger=log, max_steps=4).fit(SemanticStage(), datamodule=data)
    levels = [float(row["val/loss_paper"]) for row in read_rows(log.path) if row.get("val/loss_paper")]
    assert levels == ([pytest.approx(PAPER_VALUES["SemanticStage"].loss)] if shown else [])
    with log.path.open() as file:
        assert ("val/accuracy_paper" in next(csv.reader(file))) == shown
