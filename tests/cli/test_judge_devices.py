"""``judge --devices 2`` from the command line, killed midway and continued: the votes are those of one device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny_study
from tiny_audio_chat import make_qwen2_audio

import hafm_lightning
from hafm_lightning.cli import main
from hafm_lightning.listening.study import Study
from hafm_lightning.listening.vote import Failure, Vote
from hafm_lightning.listening.votes import VoteStore

DIES_AT = 4
SCRIPT = f"""
import hashlib, os, signal, sys
from hafm_lightning.cli import main
from hafm_lightning.listening.judge.audio_chat import AudioChatJudge
from hafm_lightning.listening.judge.coherence import CoherenceJudge

rank, asked = os.environ.get("LOCAL_RANK", "0"), 0

def recording(judge):
    def recorded(self, trials):
        global asked
        for trial in trials:
            asked += 1
            if rank in os.environ["DYING_RANKS"] and asked == {DIES_AT}:
                os.kill(os.getpid(), signal.SIGKILL)
            name = hashlib.sha256(trial.vocal.tobytes() + trial.first.tobytes()).hexdigest()
            with open(os.environ["ASKED"], "a") as file:
                file.write(name + "\\n")
            yield from judge(self, [trial])
    return recorded

for kind in (AudioChatJudge, CoherenceJudge):
    kind.judge = recording(kind.judge)
sys.exit(main(sys.argv[1:]))
"""


def stored(study: Study, path: Path) -> tuple[list[Vote], list[Failure]]:
    with VoteStore.for_study(path, study) as store:
        return sorted(store.votes(), key=repr), sorted(store.failures(), key=repr)


@pytest.mark.slow
@pytest.mark.parametrize(("judge", "dying"), [("coherence", "01"), ("audio_chat", "1"), ("audio_chat", "0")])
def test_killed_ranks_are_continued_and_no_trial_is_judged_twice(
    judge: str, dying: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_study, "DURATION_S", 1.0)
    study, _ = tiny_study.make_tiny_study(tmp_path / "study", clips=6)
    options = ["judge", str(study.folder), "--judge", judge, "--accelerator", "cpu", "--name", "one"]
    if judge == "audio_chat":
        options += ["--model", str(make_qwen2_audio(tmp_path / "model")), "--dtype", "fp32"]
    alone, shared, log = tmp_path / "alone.sqlite", tmp_path / "shared.sqlite", tmp_path / "asked"
    assert main([*options, "--votes", str(alone)]) == 0
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    source = Path(hafm_lightning.__file__).parents[1]
    environment = os.environ | {"ASKED": str(log), "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}

    def run(dying: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *options, "--votes", str(shared), "--devices", "2"]
        environment["DYING_RANKS"] = dying
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)

    assert run(dying).returncode != 0
    votes, failures = stored(study, shared)
    total = 2 * len(study.trials)
    assert DIES_AT - 1 <= len(votes) + len(failures) < total
    continued = run("none")
    assert continued.returncode == 0, continued.stderr
    assert stored(study, shared) == stored(study, alone)
    asked = Counter(log.read_text().split())
    assert len(asked) == total
    twice = sum(asked.values()) - total
    assert twice <= 1  # Lightning ends the other process, maybe in the middle of an answer that is then not stored
