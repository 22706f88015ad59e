"""The demo: how it divides the work, how it continues, and (slow) the whole chain on a few small songs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from html_pages import ParsedPage

from hafm_lightning.cli import main
from hafm_lightning.cli.demo.command import STAGES, Places, fit_arguments
from hafm_lightning.cli.demo.fits import Fit, _wait_for_orphan, lanes, logged_step, run_fits
from hafm_lightning.cli.demo.report import write_report
from hafm_lightning.cli.demo.scores import CONTROLS, METRICS, SYSTEMS
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.errors import RequestError
from hafm_lightning.locks import LOCK_NAME, Lock


def test_lanes_hold_every_stage_once_and_balance():
    weights = {"semantic": 0.3, "coarse": 0.5, "fine": 0.2}
    assert lanes(weights, 1) == [["coarse", "semantic", "fine"]]
    assert sorted(map(sorted, lanes(weights, 2))) == [["coarse"], ["fine", "semantic"]]
    assert sorted(lanes(weights, 8)) == [["coarse"], ["fine"], ["semantic"]]


def test_the_fits_are_commands_that_parse(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    places = Places(repository / "experiments" / "quickstart", tmp_path)
    for stage in STAGES:
        config = read_config("fit", fit_arguments(places, stage, 80))
        assert config.trainer.max_steps == 80
        assert config.model.init_args.optimizer.total_steps == 80
        assert config.model.init_args.optimizer.warmup_steps == 8
        assert config.trainer.val_check_interval == 20


def make_fit(folder: Path, *arguments: str) -> Fit:
    return Fit("stage", arguments, 4, folder / "runs", folder / "stage.log", folder / "stage.done")


def test_a_refused_configuration_is_told_with_its_own_words(tmp_path):
    with pytest.raises(RequestError, match="nowhere"):
        run_fits([[make_fit(tmp_path, "fit", "--config", "nowhere.yaml")]], threads=1)
    assert not (tmp_path / "stage.done").exists()


def test_a_folder_in_which_another_demo_works_is_refused(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    other = Lock(tmp_path / "demo" / LOCK_NAME)
    assert other.acquire()
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    printed = capsys.readouterr()
    assert f"{tmp_path / 'demo'} is in use by process {os.getpid()} on " in printed.err
    assert printed.out == "", "nothing was begun"
    other.release()


def test_a_fit_waits_for_the_run_that_a_killed_demo_left(tmp_path):
    (tmp_path / "runs" / "run-000").mkdir(parents=True)
    orphan = Lock(tmp_path / "runs" / "run-000" / LOCK_NAME)
    assert orphan.acquire()
    waiting = threading.Thread(target=_wait_for_orphan, args=(tmp_path / "runs",))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    orphan.release()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_finished_fit_is_not_run_again(tmp_path):
    fit = make_fit(tmp_path, "no-such-command")
    fit.done.touch()
    run_fits([[fit]], threads=1)
    assert not fit.log.exists()


def test_the_logged_step_is_the_newest_runs(tmp_path):
    fit = make_fit(tmp_path)
    assert logged_step(fit) == 0
    for run, steps in (("run-000", (10, 90)), ("run-001", (10, 20))):
        folder = fit.root / run
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,train/loss\n" + "".join(f"{s},1.0\n" for s in steps))
    assert logged_step(fit) == 20


def test_the_report_shows_every_system_and_marks_what_is_not_proven(tmp_path):
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75, "level": 0.95, "n": 3, "groups": 3}
    flat = interval | {"mean": 0.125, "low": -0.125}
    report = {
        "minutes": 9,
        "real_time_factor": 0.5,
        "held_out": {"songs": 3, "clips": 9, "clip_seconds": 10},
        "takes": ["<song>@0"],
        "stages": {
            name: {"steps": 7} | dict.fromkeys(("loss", "conditioning_gain", "other_clip_gap"), interval)
            for name in STAGES
        },
        "music": {
            "systems": {name: dict.fromkeys(METRICS, interval) for name in SYSTEMS},
            "model_minus": {name: dict.fromkeys(METRICS, flat) for name in CONTROLS},
            "fad": {
                "values": {"model": 12.345},
                "embedding": "logmel",
                "dimensions": 128,
                "rows": 30,
                "seconds_a_clip": 10,
                "rate_hz": 16000,
                "reference": "truth",
            },
        },
        "pictures": {"curves": ["curves/a.png"], "spectrogram": ["spectrogram.png"]},
    }
    page = ParsedPage(write_report(tmp_path, report).read_text())
    page.check_whole()
    page.check_narrow()
    assert all(name in page.text for name in SYSTEMS)
    assert 'class="flat">+0.125<small>[-0.125, +0.750]' in page.source
    assert 'class="good">+0.500<small>[+0.250, +0.750]' in page.source
    assert "12.35" in page.text or "12.34" in page.text
    sounds = [attributes["src"] for attributes in page.all("audio")]
    assert sounds == [f"takes/%3Csong%3E%400/{name}.wav" for name in ("vocal", "mix", "truth")]
    assert [attributes["src"] for attributes in page.all("img")] == ["curves/a.png", "spectrogram.png"]
    assert "<song>" not in page.source


def test_wrong_requests(tmp_path, capsys):
    assert main(["demo", "--minutes", "0"]) == 2
    assert main(["demo", "--experiments", str(tmp_path)]) == 2
    assert "--experiments" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "demo"):
        assert main(["demo", "--out", str(out)]) == 2
        assert "--out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_chain_survives_a_kill(repository, tmp_path):
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    for name in ("prepare", *STAGES):
        text = (repository / "experiments" / "quickstart" / f"{name}.yaml").read_text()
        text = text.replace("data/quickstart", str(tmp_path / "data")).replace("batch_size: 16", "batch_size: 4")
        text = text.replace("train_songs: 120", "train_songs: 8").replace("test_songs: 24", "test_songs: 3")
        (experiments / f"{name}.yaml").write_text(text)
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "hafm_lightning", "demo", "--minutes", "0.1", "--out", str(out)]
    command += ["--experiments", str(experiments)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not list(out.glob("work/runs/*/run-000/checkpoints/step-*.ckpt")) and time.monotonic() < deadline:
        assert process.poll() is None, "the demo ended before it could be killed"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    plan = (out / "work" / "plan.json").read_text()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=900)
    assert (out / "work" / "plan.json").read_text() == plan
    report = json.loads((out / "report.json").read_text())
    assert set(report["stages"]) == set(STAGES)
    assert report["held_out"]["songs"] == 3
    assert report["music"]["systems"]["ground truth"]["chord_accuracy"]["mean"] > 0.8
    assert (out / "report.html").is_file()
    assert (out / "spectrogram.png").is_file()
    assert report["pictures"]["curves"]
    for clip in report["takes"]:
        assert (out / "takes" / clip / "mix.wav").is_file()
