"""``listen remove`` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import make_tiny_study

from hafm_lightning.cli import main
from hafm_lightning.listening.serve.listeners import Listeners
from hafm_lightning.listening.study import CRITERIA, Study
from hafm_lightning.listening.vote import Vote
from hafm_lightning.listening.votes import VoteStore


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_tiny_study(tmp_path / "study", clips=2)[0]


def vote_as(study: Study, *voters: str) -> None:
    with VoteStore.for_study(study.folder / "votes.sqlite", study) as store:
        for voter in voters:
            for trial in study.trials:
                store.add(Vote(voter, trial.id, "AB", dict.fromkeys(CRITERIA, "A"), 4, note=f"by {voter}"))


def voters_of(study: Study) -> set[str]:
    with VoteStore.for_study(study.folder / "votes.sqlite", study) as store:
        return {vote.voter for vote in store.votes()}


def test_votes_of_one_listener_go_and_the_others_stay(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    votes = study.folder / "votes.sqlite"
    vote_as(study, "judge:coherence", "imported ann")
    listeners = Listeners(votes)
    token, other = listeners.add("text", "a code of ann"), listeners.add("text")
    assert token is not None
    assert other is not None
    ann, bob = (listeners.find(secret) for secret in (token, other))
    assert ann is not None
    assert bob is not None
    vote_as(study, ann.voter, bob.voter)
    listeners.play(ann.voter, study.trials[0].id, "vocal")
    assert main(["listen", "remove", str(study.folder), "--listener", ann.voter, "judge:coherence"]) == 0
    assert f"{ann.voter}: {len(study.trials)} votes deleted" in capsys.readouterr().out
    assert voters_of(study) == {"imported ann", bob.voter}
    gone, stays = listeners.find(token), listeners.find(other)
    assert gone is not None
    assert stays is not None
    assert gone.withdrawn
    assert not stays.withdrawn
    assert listeners.played(ann.voter, study.trials[0].id) == set()
    assert listeners.add("text", "a code of ann") is None, "the invitation stays used"
    listeners.close()
    for path in study.folder.glob("votes.sqlite*"):
        assert f"by {ann.voter}".encode() not in path.read_bytes()


def test_an_unknown_listener_is_refused_and_nothing_is_deleted(
    study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    vote_as(study, "ann")
    assert main(["listen", "remove", str(study.folder), "--listener", "ann", "nobody"]) == 2
    assert "no listener or judge nobody; nothing was deleted" in capsys.readouterr().err
    assert voters_of(study) == {"ann"}
    absent = tmp_path / "absent.sqlite"
    assert main(["listen", "remove", str(study.folder), "--listener", "ann", "--votes", str(absent)]) == 2
    assert "no such file of votes" in capsys.readouterr().err
    assert not absent.exists()
