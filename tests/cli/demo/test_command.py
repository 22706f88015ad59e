"""The demo: how it divides the work, how it continues, and (slow) the whole chain on a few small songs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote

import pytest
import yaml
from html_pages import ParsedPage
from tiny_music import CLIP_S, TinyMusic, save_stage, tiny_stage

from hafm_lightning.cli import main
from hafm_lightning.cli.demo.command import STAGES, Places, export, fit_arguments, make_card, run_root
from hafm_lightning.cli.demo.fits import Fit, _wait_for_orphan, lanes, logged_step, run_fits
from hafm_lightning.cli.fit.training import read_config
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import load_card
from hafm_lightning.evaluation.card.page import write_card
from hafm_lightning.processes.locks import LOCK_NAME, Lock
from hafm_lightning.shards import open_shards


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


def test_the_card_shows_every_control_and_the_curves_of_training(
    repository: Path, music: TinyMusic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(tmp_path / "experiments", tmp_path / "demo")
    config = yaml.safe_load((repository / "experiments" / "quickstart" / "demo.yaml").read_text())
    config["protocols"][0] |= {"duration_s": CLIP_S, "active": 0.3}
    config |= {"workers": 1, "sampling": {"guidance": 1.0}}
    places.experiments.mkdir()
    (places.experiments / "demo.yaml").write_text(yaml.safe_dump(config))
    checkpoints = {}
    for stage in STAGES:
        checkpoints[stage] = save_stage(tiny_stage(stage), music, tmp_path / f"{stage}.ckpt")
        run = run_root(places, stage) / "run-000"
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text("step,train/loss\n0,5.0\n1,4.5\n2,4.0\n")
    export(places, checkpoints)
    preparation: Any = SimpleNamespace(corpora=[SimpleNamespace(path=music.songs)], root=music.shards)
    card = make_card(places, preparation)

    systems, differences, tokens = card.tables
    rows = {row.system: row for row in systems.rows}
    floors = {"vocal_alone", "silence", "noise"}
    assert set(rows) == {"ground_truth", "codec_8", "three_stages", "other_vocal", "random"} | floors
    assert all((row.clips, row.failed) == (3, 0) for row in rows.values())
    chords = {name: row.values["chord_accuracy"].value for name, row in rows.items()}
    assert chords["ground_truth"] > 0.8 > chords["random"]
    assert [row.system for row in differences.rows] == ["three_stages-random", "three_stages-other_vocal"]
    lead = chords["three_stages"] - chords["random"]
    assert differences.rows[0].values["chord_accuracy"].value == pytest.approx(lead)
    assert [row.system for row in tokens.rows] == list(STAGES)
    assert tokens.rows[0].clips == len(open_shards(music.shards, "test"))
    assert len(systems.players) == 3

    write_card(card, places.card)
    page = ParsedPage((places.card / "card.html").read_text())
    page.check_whole()
    page.check_narrow()
    shown = [attributes["src"] for tag in ("audio", "img") for attributes in page.all(tag)]
    assert all((places.card / unquote(file)).is_file() for file in shown)
    assert [file for file in shown if file.endswith(".png")] == [quote(file) for file in card.pictures.values()]
    assert sum("curves/" in file for file in shown) == len(STAGES)
    assert sum("spectrogram" in file for file in shown) == 1


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
    for name in ("prepare", *STAGES, "demo"):
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
    card = load_card(out / "card" / "card.json")
    assert card.facts["training steps"].keys() == set(STAGES)
    systems, _, tokens = card.tables
    assert [row.system for row in tokens.rows] == list(STAGES)
    truth = systems.rows[0]
    assert (truth.system, truth.clips) == ("ground_truth", 3)
    assert (truth.values["chord_accuracy"].value or 0) > 0.8
    assert (out / "card" / "card.html").is_file()
    assert len(card.pictures) == 1 + len(STAGES)
    for player in systems.players:
        assert all((out / "card" / file).is_file() for file in player.sounds.values())
