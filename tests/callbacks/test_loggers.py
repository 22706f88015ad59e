"""The CSV log and W&B without a network."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule
from tiny_shards import write_tiny_shards

from hafm_lightning.callbacks import CsvLog, WandbDashboard
from hafm_lightning.callbacks.loggers import chosen_mode, read_rows
from hafm_lightning.data_modules import TokenShards
from hafm_lightning.training.internals import set_wandb_run, wandb_settings


@pytest.fixture
def data(tmp_path):
    return TokenShards(str(write_tiny_shards(tmp_path / "shards", train=(8,))), batch_size=2)


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


@pytest.mark.parametrize("given", [{}, {"name": "shown", "save_dir": "elsewhere"}])
def test_the_identity_of_a_wandb_run_is_that_of_the_run_folder(tmp_path, given):
    run = tmp_path / "coarse" / "run-000"
    run.mkdir(parents=True)
    logger = WandbDashboard(project="test", mode="offline", tags=["a"], **given)
    before = logger.version
    logger.use_run_folder(run)
    assert logger.version == before
    (run / "wandb-run-id.txt").write_text("a1b2\n")
    logger.use_run_folder(run)
    assert (logger.save_dir, logger.name, logger.version) == (given.get("save_dir", str(run)), "test", "a1b2")
    settings = wandb_settings(logger)
    folder, name = given.get("save_dir", str(run)), given.get("name", "coarse/run-000")
    expected = {"dir": folder, "name": name, "id": "a1b2", "tags": ["a"], "mode": "offline"}
    assert {key: settings[key] for key in expected} == expected


def test_a_row_that_comes_twice_is_written_once(tmp_path):
    log = CsvLog(str(tmp_path))
    for metrics, step in (
        ({"a": 1.0, "b": float("nan")}, 0),
        ({"a": 1.0, "b": float("nan")}, 0),
        ({"a": 1.0}, 0),
        ({"a": 1.0}, 1),
        ({"a": 2.0}, 1),
        ({"a": 2.0}, 1),
    ):
        log.log_metrics(metrics, step)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [(row["step"], row["a"]) for row in rows] == [("0", "1.0"), ("0", "1.0"), ("1", "1.0"), ("1", "2.0")]


class Recorded:
    """A W&B run that keeps what it is given."""

    id = "a1b2"

    def __init__(self):
        self.artifacts = []

    def log_artifact(self, artifact, aliases):
        self.artifacts.append((artifact, aliases))


@pytest.mark.parametrize(
    ("wanted", "status", "sent"), [(True, "success", 1), (True, "failed", 0), (False, "success", 0)]
)
def test_the_best_checkpoint_becomes_an_artifact_where_that_is_wanted(wanted, status, sent, tmp_path):
    logger = WandbDashboard(mode="offline", log_model=wanted)
    logger.use_run_folder(tmp_path)
    run = Recorded()
    set_wandb_run(logger, run)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    logger.finalize(status)
    assert len(run.artifacts) == sent
    for artifact, aliases in run.artifacts:
        assert artifact.type == "model"
        assert list(artifact.manifest.entries) == ["best.ckpt"]
        assert "best" in aliases


def test_the_configuration_of_a_wandb_run_names_the_tokenizers(tmp_path):
    from hafm_lightning.callbacks import Dashboard

    class Module(LightningModule):
        tokenizers = {"semantic": {"kind": "hubert", "sha256": "c3"}}
        tokenizers_folder = None

    logger, given = WandbDashboard(mode="offline"), []
    logger.log_hyperparams = given.append
    trainer = SimpleNamespace(loggers=[logger], precision="32-true")
    Dashboard().on_train_start(trainer, Module())
    assert given == [{"tokenizers": {"semantic": {"kind": "hubert", "sha256": "c3"}}}]


def test_the_run_that_a_sweep_agent_waits_for_is_the_run(tmp_path, monkeypatch):
    """The logger drew an id of its own, so that the agent's run stayed empty and the sweep without a score."""
    monkeypatch.setenv("WANDB_RUN_ID", "agents-run")
    logger = WandbDashboard(project="test", mode="offline")
    assert logger._given["id"] == "agents-run"
    (tmp_path / "wandb-run-id.txt").write_text("earlier\n")
    logger.use_run_folder(tmp_path)
    assert logger._given["id"] == "agents-run"
    assert logger.experiment.id == "agents-run"
    import wandb

    wandb.finish()
    assert (tmp_path / "wandb-run-id.txt").read_text().strip() == "agents-run"
    monkeypatch.delenv("WANDB_RUN_ID")
    again = WandbDashboard(project="test", mode="offline")
    again.use_run_folder(tmp_path)
    assert again._given["id"] == "agents-run"
