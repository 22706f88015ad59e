"""Options of Lightning that people give: each works, or is answered in a few lines."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from key_cases import refusal
from tiny_shards import write_tiny_shards

from hafm_lightning.cli import main
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.stages import load_stage

MODEL = {"backbone": {"layers": 1, "width": 16, "heads": 2, "feedforward": 24}, "conditioning": "aligned"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    write_tiny_shards(folder / "shards", train=(4, 4), validation=(3,), test=(3,))
    return folder


@pytest.fixture
def config(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "model": {"class_path": "hafm_lightning.stages.SemanticStage", "init_args": dict(MODEL)},
        "data": {
            "class_path": "hafm_lightning.data_modules.TokenShards",
            "init_args": {"root": str(base / "shards"), "batch_size": 2, "crop_s": 0.4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_of(config: Path, number: int = 0) -> Path:
    return config.parent / "logs" / "tiny" / f"run-{number:03d}"


def steps_of(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as file:
        return [row["step"] for row in csv.DictReader(file) if row["train/loss"]]


SEES = """
import json
import lightning.pytorch as pl
from pathlib import Path

class Sees(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        first = next(iter(batch.streams.values()))
        with Path("seen.jsonl").open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch.clip_ids, first.flatten()[:4].tolist()]) + "\\n")
"""


@pytest.mark.parametrize("batches", ["2", "0.5"])
def test_overfit_batches_trains_on_the_same_clips_and_crops_each_epoch(config, batches, monkeypatch):
    """Lightning put a sampler of its own in: "object of type 'int' has no len()"."""
    (config.parent / "sees_batches.py").write_text(SEES)
    monkeypatch.syspath_prepend(str(config.parent))
    monkeypatch.delitem(sys.modules, "sees_batches", raising=False)
    arguments = ["--trainer.overfit_batches", batches, "--trainer.max_steps", "6"]
    arguments += ["--trainer.callbacks+=sees_batches.Sees"]
    assert main(["fit", "--config", str(config), *arguments]) == 0
    import json

    rows = [json.loads(line) for line in (config.parent / "seen.jsonl").read_text().splitlines()]
    epochs = [[row[1:] for row in rows if row[0] == epoch] for epoch in range(3)]
    assert len(epochs[0]) == 2
    assert epochs[0] == epochs[1] == epochs[2]
    assert main(["fit", "--config", str(config), *arguments, "--ckpt_path", "auto", "--trainer.max_steps", "8"]) == 0
    more = [json.loads(line)[1:] for line in (config.parent / "seen.jsonl").read_text().splitlines()[6:]]
    assert more == epochs[0], "a run that continues goes on with the same batches"


def test_a_sampler_of_others_is_noticed(base):
    from torch.utils.data import DataLoader

    from hafm_lightning.data_modules import TokenShards
    from hafm_lightning.errors import RequestError

    data = TokenShards(str(base / "shards"), 2)
    data.setup("fit")
    own = data.train_dataloader()
    for other in (DataLoader(own.dataset, batch_size=None, shuffle=False), DataLoader(own.dataset, batch_size=2)):
        with pytest.raises(RequestError, match="the order of clips was replaced"):
            next(iter(other))


def test_max_time_counts_each_session(config):
    """Lightning's timer adds the earlier sessions: a continued run stopped before its first step."""
    arguments = ["--config", str(config), "--trainer.max_time", "00:00:00:01", "--trainer.max_steps", "100000"]
    assert main(["fit", *arguments]) == 0
    first = max(map(int, steps_of(run_of(config))))
    assert main(["fit", *arguments, "--ckpt_path", "auto"]) == 0
    second = max(map(int, steps_of(run_of(config))))
    assert 0 <= first < second < 99_999


ZEROS = {
    "fit": ["limit_train_batches", "max_steps", "max_epochs"],
    "validate": ["limit_val_batches"],
    "test": ["limit_test_batches"],
    "predict": ["limit_predict_batches"],
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command, names in ZEROS.items() for name in names])
def test_a_limit_of_nothing_is_told(config, capsys, command, name):
    message = refusal(capsys, command, "--config", str(config), f"--trainer.{name}", "0")
    assert f"trainer.{name} is 0" in message
    assert "nothing would be" in message
    assert not run_of(config).exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("trainer.accumulate_grad_batches", "0", "must be 1 or more"),
        ("trainer.accumulate_grad_batches", "-2", "must be 1 or more"),
        ("trainer.val_check_interval", "0", "must be above 0"),
        ("trainer.check_val_every_n_epoch", "0", "must be above 0"),
        ("trainer.max_time", "00:00:00:00", "trainer.max_time is 0"),
        ("trainer.max_time", "soon", "expected DD:HH:MM:SS"),
        ("model.optimizer.learning_rate", ".nan", "learning_rate must be above 0"),
        ("model.optimizer.learning_rate", ".inf", "learning_rate must be above 0"),
        ("model.optimizer.weight_decay", ".nan", "weight_decay must be 0 or more"),
        ("model.optimizer.beta1", "1", "beta1 must be in [0, 1)"),
        ("model.optimizer.beta2", ".nan", "beta2 must be in [0, 1)"),
        ("model.optimizer.final_fraction", "-1", "final_fraction must be in [0, 1]"),
        ("data.crop_s", ".nan", "data.crop_s is nan"),
        ("checkpoints.every_minutes", ".nan", "checkpoints.every_minutes must be above 0"),
    ],
)
def test_values_that_end_in_a_traceback_later_are_refused(config, capsys, option, value, words):
    assert words in refusal(capsys, "fit", "--config", str(config), f"--{option}", value)
    assert not run_of(config).exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("val_check_interval", "100"), ("limit_train_batches", "0.01"), ("limit_val_batches", "0.001")],
)
def test_what_lightning_refuses_when_training_begins_is_told_in_lines(config, capsys, option, value):
    assert option.split("_")[0] in refusal(capsys, "fit", "--config", str(config), f"--trainer.{option}", value)


def test_no_validation_is_a_choice(config):
    assert main(["fit", "--config", str(config), "--trainer.limit_val_batches", "0"]) == 0
    assert steps_of(run_of(config)) == ["0", "1"]


@pytest.mark.parametrize(
    ("tuner", "way"), [("LearningRateFinder", "--model.optimizer.learning_rate"), ("BatchSizeFinder", "describe")]
)
def test_lightnings_tuners_are_answered_with_the_way(config, capsys, tuner, way):
    option = f"--trainer.callbacks+=lightning.pytorch.callbacks.{tuner}"
    message = refusal(capsys, "fit", "--config", str(config), option)
    assert f"{tuner} cannot be used here" in message
    assert way in message


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (["--trainer.max_steps", "1e3"], "trainer.max_steps", 1000),
        (["--trainer.max_steps=2.5e2"], "trainer.max_steps", 250),
        (["--data.batch_size", "1e1"], "data.init_args.batch_size", 10),
        (["--model.optimizer.warmup_steps", "1E2"], "model.init_args.optimizer.warmup_steps", 100),
        (["--model.optimizer.learning_rate", "1e-3"], "model.init_args.optimizer.learning_rate", 0.001),
        (["--trainer.gradient_clip_val", "5e-1"], "trainer.gradient_clip_val", 0.5),
        (["--trainer.limit_train_batches", "5e-1"], "trainer.limit_train_batches", 0.5),
        (["--data.root", "1e3"], "data.init_args.root", "1e3"),
    ],
)
def test_numbers_with_an_exponent_on_the_command_line(config, options, key, value):
    found = read_config("fit", ["--config", str(config), *options])[key]
    assert found == value
    assert type(found) is type(value)


def test_a_fraction_is_no_whole_number(config, capsys):
    assert "must be int" in refusal(capsys, "fit", "--config", str(config), "--trainer.max_steps", "1e-3")


def test_a_missing_path_says_where_it_was_looked_for(config, capsys):
    """The shipped configurations name their data relative to the repository."""
    message = refusal(capsys, "fit", "--config", "experiments/coarse.yaml")
    assert f"experiments/coarse.yaml does not exist (looked for in {Path.cwd()})" in message
    message = refusal(capsys, "fit", "--config", str(config), "--data.root", "data/fma/shards")
    assert f"data/fma/shards does not exist (looked for in {Path.cwd()})" in message


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_a_seed_that_no_generator_takes_is_refused(config, capsys, seed):
    assert "seed_everything must lie in 0 .. 4294967295" in refusal(
        capsys, "fit", "--config", str(config), "--seed_everything", seed
    )


def test_own_data_train_where_the_toy_band_is_not(config, caplog):
    """`fit --config experiments/quickstart/semantic.yaml --data.root MINE` ended at the toy band's folder."""
    music = "--trainer.callbacks+=hafm_lightning.callbacks.MusicEvaluation"
    options = ["--trainer.callbacks.root", "data/quickstart/toyband", "--trainer.callbacks.optional", "true"]
    with caplog.at_level("INFO"):
        assert main(["fit", "--config", str(config), music, *options]) == 0
    assert steps_of(run_of(config)) == ["0", "1"]
    assert "MusicEvaluation measures no music: its `root` data/quickstart/toyband does not exist" in caplog.text


@pytest.mark.parametrize(("saved", "read"), [("64-true", "32-true"), ("bf16-mixed", "32-true"), ("32-true", "64-true")])
def test_a_checkpoint_of_another_precision_is_scored(config, capsys, saved, read):
    assert main(["fit", "--config", str(config), "--trainer.precision", saved]) == 0
    capsys.readouterr()
    arguments = ["--config", str(config), "--ckpt_path", "auto", "--trainer.precision", read]
    assert main(["validate", *arguments]) == 0
    assert "val/loss" in capsys.readouterr().out


def test_ctrl_c_saves_and_leaves_with_130(config):
    """Lightning leaves with exit code 1 and without a checkpoint."""
    command = [sys.executable, "-m", "hafm_lightning", "fit", "--config", str(config), "--trainer.max_steps", "100000"]
    # a shell lets the programs that it starts with & ignore Ctrl-C
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        metrics = run_of(config) / "metrics.csv"
        until = time.monotonic() + 300
        while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said[-2000:]
    assert "Traceback" not in said
    saved = max((run_of(config) / "checkpoints").glob("step-*.ckpt"))
    steps = int(saved.stem.removeprefix("step-"))
    assert len(steps_of(run_of(config))) == steps, "every step that is saved is logged"
    assert load_stage(saved).duration_s == pytest.approx(0.4)
