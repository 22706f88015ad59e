"""No vote is lost, changed or counted twice: across threads, processes, kill -9, damage and foreign files."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_study import make_tiny_study

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.votes import Counts, Failure, Vote, VoteConflict, VoteStore

STUDY = "0123456789abcdef"
CHOICES: Any = {"rhythm": "A", "harmony": "tie", "overall": "B"}


def vote(voter: str = "ann", trial: str = "t1", presentation: Any = "AB", **changes: Any) -> Vote:
    return Vote(voter, trial, presentation, **{"choices": CHOICES, "confidence": 3, "seconds": 9.5, **changes})


def test_votes_come_back_as_they_were_given(tmp_path: Path) -> None:
    votes = [
        vote(),
        vote("judge:stages", note="ein Grund: «gut»", confidence=None, seconds=None),
        vote(presentation="BA"),
    ]
    with VoteStore.open(tmp_path / "new" / "votes.sqlite", STUDY) as store:
        assert [store.add(one) for one in votes] == [True, True, True]
        assert store.votes() == votes
    with VoteStore.open(tmp_path / "new" / "votes.sqlite", STUDY, must_exist=True) as store:
        assert store.votes() == votes
        assert store.counts() == Counts(3, 0, {"ann": 2, "judge:stages": 1}, {"t1": 3})
    header = sqlite3.connect(tmp_path / "new" / "votes.sqlite")
    assert header.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    header.close()


def test_a_voter_can_be_removed_also_from_the_bytes_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "votes.sqlite"
    with VoteStore.open(file, STUDY) as store:
        for one in (vote("a voter who leaves"), vote("a voter who leaves", "t2"), vote("bob")):
            store.add(one)
        store.add_failure("a voter who leaves", "t3", "AB", "tired")
        assert store.trials_of("a voter who leaves") == {"t1", "t2"}
        assert store.remove("a voter who leaves") == 2
        assert store.remove("a voter who leaves") == 0
        assert store.trials_of("a voter who leaves") == set()
        assert (store.votes(), store.failures()) == ([vote("bob")], [])
        for path in tmp_path.iterdir():
            assert b"a voter who leaves" not in path.read_bytes(), path


@pytest.mark.parametrize("field", ["confidence", "seconds"])
def test_a_number_beyond_all_floats_is_refused(field: str) -> None:
    with pytest.raises(RequestError, match=field):
        vote(**{field: -(10**400)})


def test_the_same_vote_again_is_stored_once_and_another_one_refused(tmp_path: Path) -> None:
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store:
        assert store.add(vote())
        assert not store.add(vote(seconds=11.0))  # sent again after a lost answer
        for other in (vote(choices={**CHOICES, "overall": "A"}), vote(confidence=4), vote(note="x")):
            with pytest.raises(VoteConflict, match="ann has voted on trial t1 before"):
                store.add(other)
        assert store.votes() == [vote()]


@pytest.mark.parametrize(
    "changes",
    [
        {"voter": ""},
        {"voter": "x" * 201},
        {"voter": "a\nb"},
        {"voter": 7},
        {"trial": ""},
        {"presentation": "A"},
        {"choices": {}},
        {"choices": []},
        {"choices": {"overall": "C"}},
        {"choices": {"overall": None}},
        {"choices": {"overall": ["A"]}},
        {"choices": {"volume": "A"}},
        {"confidence": 0},
        {"confidence": 5.5},
        {"confidence": float("nan")},
        {"confidence": True},
        {"confidence": "3"},
        {"seconds": -1},
        {"seconds": float("inf")},
        {"note": "x" * 4001},
        {"note": None},
        {"extra": 1},
    ],
)
def test_a_wrong_vote_is_refused_before_it_is_stored(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Vote.from_dict({**vote().as_dict(), **changes})
    assert Vote.from_dict(vote().as_dict()) == vote()


def test_a_vote_for_a_trial_or_criterion_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    study, _ = make_tiny_study(tmp_path / "study", clips=1)
    with VoteStore.for_study(tmp_path / "votes.sqlite", study) as store:
        with pytest.raises(RequestError, match="has no trial 't1'; the vote is not stored"):
            store.add(vote())
        with pytest.raises(RequestError, match="has no trial"):
            store.add_failure("judge:x", "t1", "AB", "prose")
        with pytest.raises(RequestError, match="answers harmony, overall, rhythm"):
            store.add(vote(trial=study.trials[0].id, choices={"overall": "A"}))
        assert store.counts() == Counts(0, 0, {}, {})
        assert store.add(vote(trial=study.trials[0].id))


def test_failures_are_counted_once_until_a_vote_replaces_them(tmp_path: Path) -> None:
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store:
        store.add_failure("judge:x", "t1", "AB", "answered in prose")
        store.add_failure("judge:x", "t1", "AB", "answered in prose twice")
        store.add_failure("judge:x", "t1", "BA", "")
        assert store.failures() == [
            Failure("judge:x", "t1", "AB", "answered in prose twice"),
            Failure("judge:x", "t1", "BA", "no reason given"),
        ]
        store.add(vote("judge:x"))
        store.add_failure("judge:x", "t1", "AB", "too late: there is a vote")
        assert store.counts() == Counts(1, 1, {"judge:x": 1}, {"t1": 1})


def test_many_threads_vote_at_once(tmp_path: Path) -> None:
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store, ThreadPoolExecutor(20) as threads:
        everything = [vote(f"v{voter}", f"t{trial}") for trial in range(8) for voter in range(20)]
        added = list(threads.map(store.add, everything * 2))
        assert sum(added) == len(everything)
        assert sorted(store.votes(), key=repr) == sorted(everything, key=repr)


CHILD = """
import sys
from hafm_lightning.listening.votes import Vote, VoteStore
store = VoteStore.open(sys.argv[1], sys.argv[2])
for trial in range(10_000):
    store.add(Vote(sys.argv[3], f"t{trial}", "AB", {"overall": "A"}))
    print(trial, flush=True)
"""


def test_accepted_votes_survive_kill_9_of_processes_that_began_the_file_at_once(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "votes.sqlite"), STUDY, f"v{index}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    accepted = {}
    for index, child in enumerate(children):
        assert child.stdout is not None
        for _ in range(20):
            line = child.stdout.readline()
            assert line, "the child ended by itself"
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        accepted[f"v{index}"] = max(map(int, [line, *(text for text in rest if text.isdigit())])) + 1
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store:
        counts = store.counts()
    assert counts.by_voter.keys() == accepted.keys()
    for voter, least in accepted.items():
        assert least <= counts.by_voter[voter] <= least + 1  # the last may be stored and not yet reported


def test_votes_of_another_study_are_refused(tmp_path: Path) -> None:
    VoteStore.open(tmp_path / "votes.sqlite", STUDY).close()
    with pytest.raises(RequestError, match=f"holds votes on study {STUDY}, not on {'f' * 16}"):
        VoteStore.open(tmp_path / "votes.sqlite", "f" * 16)


def test_files_that_hold_no_votes_are_refused_and_kept(tmp_path: Path) -> None:
    for name, content in (("text", b"no database\n" * 200), ("folder", None)):
        path = tmp_path / name
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(RequestError, match=name):
            VoteStore.open(path, STUDY)
        assert path.is_dir() or path.read_bytes() == content
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE votes (x)")
    other.commit()
    other.close()
    with pytest.raises(RequestError, match="database of another program"):
        VoteStore.open(tmp_path / "other.sqlite", STUDY)
    with pytest.raises(RequestError, match="no such file of votes"):
        VoteStore.open(tmp_path / "none.sqlite", STUDY, must_exist=True)


def test_a_damaged_file_is_refused_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    with VoteStore.open(path, STUDY) as store:
        for trial in range(300):
            store.add(vote(trial=f"t{trial}", note="x" * 100))
    whole = path.read_bytes()
    pages = len(whole) // 4096
    for page in range(1, pages, 3):  # a page of zeros anywhere behind the first
        path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        before = path.read_bytes()
        with pytest.raises(RequestError, match=r"votes\.sqlite: is damaged"):
            VoteStore.open(path, STUDY)
        assert path.read_bytes() == before
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"votes\.sqlite: is damaged"):
        VoteStore.open(path, STUDY)
    path.write_bytes(whole)
    with VoteStore.open(path, STUDY) as store:
        assert len(store.votes()) == 300


def test_lines_hold_everything_and_can_be_read_twice(tmp_path: Path) -> None:
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store:
        store.add(vote(note="two\nlines\u2028here"))
        store.add(vote(presentation="BA"))
        store.add_failure("judge:x", "t1", "AB", "prose")
        assert store.export_lines(tmp_path / "votes.jsonl") == 3
        votes, failures = store.votes(), store.failures()
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().split("\n")[:-1]]
    assert lines[0] == {"format": "hafm_lightning.votes", "version": 1, "study_id": STUDY}
    assert [next(iter(line)) for line in lines[1:]] == ["vote", "vote", "failure"]
    with VoteStore.open(tmp_path / "copy.sqlite", STUDY) as copy:
        assert copy.import_lines(tmp_path / "votes.jsonl") == 2
        assert copy.import_lines(tmp_path / "votes.jsonl") == 0
        assert (copy.votes(), copy.failures()) == (votes, failures)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4"),
        ("[]", "line 4: expected a JSON object"),
        ('{"vote": {}}', "line 4: wrong fields"),
        ('{"vote": [1]}', "line 4: expected a JSON object"),
        ('{"failure": {"voter": "x"}}', "line 4: wrong fields"),
        ("[" * 100_000, "line 4"),
        (json.dumps({"vote": vote(choices={"overall": "tie"}).as_dict()}), "line 4: ann has voted on trial t1 before"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_of_its_file_stored(tmp_path: Path, line: str, message: str) -> None:
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store:
        store.add(vote())
        store.add(vote("bob"))
        store.export_lines(tmp_path / "votes.jsonl")
    (tmp_path / "votes.jsonl").write_text((tmp_path / "votes.jsonl").read_text() + line + "\n")
    with VoteStore.open(tmp_path / "copy.sqlite", STUDY) as copy:
        with pytest.raises(RequestError, match=message):
            copy.import_lines(tmp_path / "votes.jsonl")
        assert copy.votes() == []


def test_lines_of_another_study_or_format_are_refused(tmp_path: Path) -> None:
    with VoteStore.open(tmp_path / "votes.sqlite", STUDY) as store:
        store.export_lines(tmp_path / "votes.jsonl")
        (tmp_path / "text").write_text("{}\n")
        (tmp_path / "empty").write_text("")
        for name in ("text", "empty", "none"):
            with pytest.raises(RequestError, match=name):
                store.import_lines(tmp_path / name)
    with (
        VoteStore.open(tmp_path / "other.sqlite", "f" * 16) as other,
        pytest.raises(RequestError, match="another study"),
    ):
        other.import_lines(tmp_path / "votes.jsonl")
