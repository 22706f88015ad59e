"""What the dashboard measures: speed, utilisation, and the paper's values beside the paper's tokens."""

import csv
import time

import pytest
import torch
from tiny_shards import write_tiny_shards
from tiny_trainer import Line, trainer_of

from hafm_lightning.callbacks import CsvLog, Dashboard
from hafm_lightning.callbacks.dashboard import PAPER_VALUES, peak_flops
from hafm_lightning.callbacks.loggers import read_rows
from hafm_lightning.data_modules import TokenShards


@pytest.fixture
def data(tmp_path):
    return TokenShards(str(write_tiny_shards(tmp_path / "shards", train=(8,))), batch_size=2)


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
        tokenizers_folder = None

    log = CsvLog(str(tmp_path))
    trainer_of(tmp_path, Dashboard(), logger=log, max_steps=4).fit(SemanticStage(), datamodule=data)
    levels = [float(row["val/loss_paper"]) for row in read_rows(log.path) if row.get("val/loss_paper")]
    assert levels == ([pytest.approx(PAPER_VALUES["SemanticStage"]["val/loss_paper"])] if shown else [])
    with log.path.open() as file:
        assert ("val/accuracy_paper" in next(csv.reader(file))) == shown
