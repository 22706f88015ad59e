"""The command ``judge``: refusals in a few lines, and what it prints at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_judge import STRENGTHS, ScriptedJudge, systems_by_sound
from tiny_audio_chat import answer_text, make_qwen2_audio
from tiny_study import make_tiny_study

from hafm_lightning.cli import judge as command
from hafm_lightning.cli import main
from hafm_lightning.listening.judge.base import Failed
from hafm_lightning.listening.study import Key, Study
from hafm_lightning.listening.votes import VoteStore


@pytest.fixture
def made(tmp_path: Path) -> tuple[Study, Key]:
    return make_tiny_study(tmp_path / "study", clips=6)


def use(monkeypatch: pytest.MonkeyPatch, judge: Any) -> None:
    monkeypatch.setattr(command, "_judge_of", lambda arguments, study: (judge, "scripted"))


def test_it_ends_with_the_gate(
    made: tuple[Study, Key], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, key = made
    judge = ScriptedJudge(systems_by_sound(study, key), STRENGTHS)
    judge.before = lambda count: Failed("the answer is prose", "Well, I like both.") if count == 1 else None
    use(monkeypatch, judge)
    assert main(["judge", str(study.folder), "--judge", "coherence", "--accelerator", "cpu"]) == 0
    total = 2 * len(study.trials)
    lines = capsys.readouterr().out.splitlines()
    assert f"judge:scripted: {total - 1} answers, 1 failures" in lines
    assert f"both orders agree in {total // 2 - 1} of {total // 2 - 1} trials (100%)" in lines
    assert "failed 1 times: the answer is prose" in lines
    assert any("Well, I like both." in line for line in lines)
    assert "the gate is passed" in lines[-1]
    with VoteStore.open(study.folder / "votes.sqlite", study.study_id, must_exist=True) as store:
        assert store.counts().votes == total - 1


def test_no_key_is_needed(
    made: tuple[Study, Key], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study, key = made
    use(monkeypatch, ScriptedJudge(systems_by_sound(study, key), STRENGTHS))
    key_file = (study.folder / "key.json").rename(tmp_path / "key.json")
    arguments = ["judge", str(study.folder), "--judge", "coherence", "--accelerator", "cpu", "--name", "mine"]
    assert main(arguments) == 0
    assert "the gate is not tested" in capsys.readouterr().out.splitlines()[-1]
    assert main([*arguments, "--key", str(key_file)]) == 0
    out = capsys.readouterr().out
    assert "judge:mine" in out
    assert "the gate is passed" in out


def test_an_audio_chat_model_judges_end_to_end(
    made: tuple[Study, Key], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of the real class that always prefers A: every pair is a tie, and the gate stays untested."""
    study, _ = made
    model = make_qwen2_audio(tmp_path / "always-a", answer_text("A", 4))
    votes = tmp_path / "votes.sqlite"
    arguments = ["--judge", "audio_chat", "--model", str(model), "--votes", str(votes), "--accelerator", "cpu"]
    assert main(["judge", str(study.folder), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"judge:audio_chat-always-a: {2 * len(study.trials)} answers, 0 failures" in out
    assert f"both orders agree in 0 of {len(study.trials)} trials" in out
    assert "The gate was not tested" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "stages"], "needs --model"),
        (["--judge", "coherence", "--model", "x"], "has no model"),
        (["--judge", "audio_chat", "--model", "nowhere/at/all"], "the folder does not exist"),
        (["--judge", "coherence", "--devices", "0"], "--devices"),
        (["--judge", "coherence", "--key", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--judge", "coherence", "--quantization", "4bit"], "--quantization is for --judge audio_chat"),
        (["--judge", "oracle"], "invalid choice"),
        (["--judge", "coherence", "--vote", "x"], "did you mean"),
    ],
)
def test_wrong_requests_are_refused_in_a_few_lines(
    made: tuple[Study, Key], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["judge", str(made[0].folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 5


def test_what_is_no_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", str(tmp_path / "nowhere"), "--judge", "coherence"]) == 2
    assert "no such study folder" in capsys.readouterr().err
