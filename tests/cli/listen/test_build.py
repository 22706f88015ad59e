"""``listen build`` from the command line: evaluate's clips, kept generations, other programs' sounds, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_music import CLIP_S, TinyMusic, save_stage, tiny_stage

from hafm_lightning.cli import main
from hafm_lightning.evaluation.systems.band import Band
from hafm_lightning.listening.study import Key, Study
from hafm_lightning.processes.locks import LOCK_NAME, Lock

CLIPS = 6


@pytest.fixture(scope="module")
def config(music: TinyMusic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listen")
    torch.manual_seed(0)
    settings = {
        "output": str(root / "card"),
        "root": str(music.songs),
        "tokenizers": str(music.tokenizers_folder),
        "shards": str(music.shards),
        **{
            name: str(save_stage(tiny_stage(name), music, root / f"{name}.ckpt"))
            for name in ("semantic", "coarse", "fine")
        },
        "protocols": [
            {"name": "short", "duration_s": CLIP_S, "clips": CLIPS, "active": 0.3},
            {"name": "long", "duration_s": 2.0, "clips": 3, "active": 0.2},
        ],
        "sampling": {"guidance": 1.0},
    }
    (root / "evaluate.yaml").write_text(yaml.safe_dump(settings))
    return root / "evaluate.yaml"


def listen(config: Path, folder: Path, *arguments: str) -> int:
    return main(["listen", "build", "--config", str(config), "--study", str(folder), *arguments])


def loaded(folder: Path) -> tuple[Study, Key]:
    study = Study.load(folder)
    return study, Key.load(folder / "key.json", study)


def refused(config: Path, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert listen(config, folder, *arguments) == 2
    shown, word, error = capsys.readouterr().err.partition("error: ")
    assert word, shown
    assert len(error.splitlines()) <= 5
    assert not folder.exists()
    return error


def test_a_study_of_a_model_ground_truth_and_random(config: Path, tmp_path: Path, capsys: Any) -> None:
    assert listen(config, tmp_path / "study", "--webmushra", str(tmp_path / "webmushra")) == 0
    assert f"{3 * CLIPS + 6} trials" in capsys.readouterr().out
    study, key = loaded(tmp_path / "study")
    assert study.duration_s == CLIP_S
    assert key.systems == ("three_stages", "ground_truth", "random")
    pairs = [entry for entry in key.assignments.values() if entry.kind == "pair"]
    assert len(pairs) == 3 * CLIPS
    assert len({entry.clip for entry in pairs}) == CLIPS
    facts = key.sources["systems"]["three_stages"]["facts"]
    assert set(facts["stages"]) == {"semantic", "coarse", "fine"}
    assert set(key.sources["systems"]["random"]["notes"]) == {entry.clip for entry in pairs}
    assert (tmp_path / "webmushra" / "configs" / f"{study.study_id}.yaml").is_file()
    text = (tmp_path / "study" / "study.json").read_text()
    assert not [word for word in ("three_stages", "ground_truth", "random", *{e.song for e in pairs}) if word in text]


def test_generations_that_evaluate_kept_are_used_again(
    config: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    assert main(["evaluate", "--config", str(config), "--metrics", "fad", "--systems", "three_stages"]) == 0

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(Band, "play", refuse)
    assert listen(config, tmp_path / "study") == 0
    assert listen(config, tmp_path / "other", "--sampling.temperature", "0.5") == 1
    assert "generated again" in capsys.readouterr().err


def test_any_protocol_systems_and_numbers(config: Path, tmp_path: Path) -> None:
    options = ["--study.protocol", "long", "--study.trials", "7", "--study.rate_hz", "16000", "--study.seed", "3"]
    options += ["--study.systems", "ground_truth", "codec_8", "codec_4", "random", "--study.criteria", "overall"]
    controls = ["--study.same", "0", "--study.silence", "1"]
    assert listen(config, tmp_path / "study", *options, *controls) == 0
    study, key = loaded(tmp_path / "study")
    assert (study.duration_s, study.rate_hz, study.criteria) == (2.0, 16000, ("overall",))
    assert sorted(entry.kind for entry in key.assignments.values()) == ["pair"] * 7 + ["silence"]
    assert key.seed == 3


@pytest.fixture(scope="module")
def other_sounds(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What another program made of the vocals: noise at 48 kHz, stereo."""
    folder = tmp_path_factory.mktemp("other")
    assert main(["listen", "build", "--config", str(config), "--vocals", str(folder / "vocals")]) == 0
    vocals = sorted((folder / "vocals").iterdir())
    assert len(vocals) == CLIPS
    assert {soundfile.info(path).duration for path in vocals} == {CLIP_S}
    (folder / "made").mkdir()
    for index, path in enumerate(vocals):
        sound = 0.1 * np.random.default_rng(index).standard_normal((round(48000 * CLIP_S) + 300, 2))
        soundfile.write(folder / "made" / f"{path.stem}.flac", sound, 48000)
    return folder / "made"


def test_sounds_of_another_program_are_compared(config: Path, other_sounds: Path, tmp_path: Path) -> None:
    options = ["--sounds", f"other={other_sounds}", "--study.systems", "ground_truth"]
    assert listen(config, tmp_path / "study", *options) == 0
    _, key = loaded(tmp_path / "study")
    assert key.systems == ("ground_truth", "other")
    assert len(key.sources["sha256"]["other"]) == CLIPS
    assert {frozenset((e.a, e.b)) for e in key.assignments.values() if e.kind == "pair"} == {frozenset(key.systems)}


def test_a_clip_without_a_sound_is_named(config: Path, other_sounds: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(other_sounds, tmp_path / "made")
    gone = sorted((tmp_path / "made").iterdir())[2]
    gone.unlink()
    error = refused(config, tmp_path / "study", capsys, "--sounds", f"other={tmp_path / 'made'}")
    assert f"has no sound for 1 of {CLIPS} clips: {gone.stem}.wav" in error


@pytest.mark.parametrize(
    ("rate_hz", "seconds", "level", "message"),
    [
        (16000, CLIP_S, 0.1, "has 16000 Hz, the study 24000 Hz"),
        (48000, 0.5, 0.1, "lasts 0.500 s, its clip 1 s"),
        (48000, 1.2, 0.1, "lasts 1.200 s, its clip 1 s"),
        (48000, CLIP_S, 0.0, "is silent"),
    ],
)
def test_a_sound_that_does_not_fit_is_refused(
    rate_hz: int,
    seconds: float,
    level: float,
    message: str,
    config: Path,
    other_sounds: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    shutil.copytree(other_sounds, tmp_path / "made")
    wrong = sorted((tmp_path / "made").iterdir())[0]
    soundfile.write(wrong, level * np.ones(round(rate_hz * seconds)), rate_hz)
    error = refused(config, tmp_path / "study", capsys, "--sounds", f"other={tmp_path / 'made'}")
    assert wrong.name in error
    assert message in error


def test_a_lower_rate_admits_sounds_of_that_rate(config: Path, other_sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for path in other_sounds.iterdir():
        sound, _ = soundfile.read(path)
        soundfile.write(tmp_path / "made" / path.name, sound[: round(16000 * CLIP_S)], 16000)
    options = ["--sounds", f"other={tmp_path / 'made'}", "--study.rate_hz", "16000", "--study.systems", "ground_truth"]
    assert listen(config, tmp_path / "study", *options) == 0


def test_two_sounds_of_one_clip_are_refused(config: Path, other_sounds: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(other_sounds, tmp_path / "made")
    first = sorted((tmp_path / "made").iterdir())[0]
    shutil.copy(first, first.with_suffix(".wav"))
    error = refused(config, tmp_path / "study", capsys, "--sounds", f"other={tmp_path / 'made'}")
    assert "are of the same clip; keep one" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocols.0.clips", "500"], "500 clips are asked for, "),
        (["--study.protocol", "none"], "no protocol none; choose from short, long"),
        (["--study.systems", "ground_truth"], "a comparison needs two"),
        (["--study.systems", "random", "random"], "two have the name random"),
        (["--study.systems", "ground_truth", "nobody"], "unknown nobody"),
        (["--sounds", "x=a", "--sounds", "x=b"], "two systems have the name x"),
        (["--sounds", "random=."], "two have the name random"),
        (["--sounds", "x=nowhere"], "no folder nowhere"),
        (["--sounds", "x"], "expected NAME=FOLDER"),
        (["--study.trials", "1000"], "make 18 comparisons, 1000 are asked for"),
        (["--study.rate_hz", "48000"], "48000 Hz is above the 24000 Hz of the codec"),
        (["--study.loudness_lufs", ".nan"], "loudness_lufs must lie"),
        (["--study.unknown", "1"], "unknown"),
        (["--study.systems", "separated", "random"], "separated cannot play"),
    ],
)
def test_wrong_requests(options: list[str], message: str, config: Path, tmp_path: Path, capsys: Any) -> None:
    assert message in refused(config, tmp_path / "study", capsys, *options)


def test_a_model_without_its_last_stage_is_refused(config: Path, tmp_path: Path, capsys: Any) -> None:
    settings = yaml.safe_load(config.read_text())
    del settings["fine"]
    (tmp_path / "two_stages.yaml").write_text(yaml.safe_dump(settings))
    error = refused(tmp_path / "two_stages.yaml", tmp_path / "study", capsys)
    assert "three_stages cannot play: no `fine` checkpoint" in error


def test_a_clip_on_which_a_system_failed_ends_the_build(
    config: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    from hafm_lightning.evaluation.systems.base import silence_for

    monkeypatch.setattr(Band, "play", lambda band, clips: [silence_for(clip, "out of tune") for clip in clips])
    error = refused(config, tmp_path / "study", capsys, "--output", str(tmp_path / "card"))
    assert f"three_stages has no sound for {CLIPS} of {CLIPS} clips" in error
    assert "(out of tune)" in error


def test_a_folder_in_use_or_not_empty_is_refused(config: Path, tmp_path: Path, capsys: Any) -> None:
    other = Lock(tmp_path / "card" / LOCK_NAME)
    assert other.acquire()
    assert "is in use by process" in refused(config, tmp_path / "study", capsys, "--output", str(tmp_path / "card"))
    other.release(erase=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "votes.sqlite").touch()
    assert listen(config, tmp_path / "full") == 2
    assert "is not empty" in capsys.readouterr().err


def test_help_and_unknown_commands(capsys: Any) -> None:
    assert main(["listen", "--help"]) == 0
    text = capsys.readouterr().out
    assert "build" in text
    assert "power" in text
    for arguments, message in (([], "listen needs a command"), (["biuld"], "did you mean 'build'?")):
        assert main(["listen", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["listen", "build", "--help"]) == 0
    text = capsys.readouterr().out
    assert "study.sounds" in text
    assert "NAME=DIR" in text


def test_key_json_holds_plain_facts(config: Path, tmp_path: Path) -> None:
    assert listen(config, tmp_path / "study", "--study.systems", "ground_truth", "random") == 0
    content = json.loads((tmp_path / "study" / "key.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["format"] == "hafm_lightning.study_key"
    assert content["sources"]["protocol"]["name"] == "short"
