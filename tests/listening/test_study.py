"""Both files of a study are read back as written, and everything that does not belong is refused in plain words."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_study import SYSTEMS, make_tiny_study

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.study import Assignment, Key, Study


@pytest.fixture
def made(tmp_path: Path) -> tuple[Study, Key]:
    return make_tiny_study(tmp_path / "study")


def test_study_and_key_come_back_as_written(made: tuple[Study, Key]) -> None:
    study, key = made
    assert study.as_json() == json.loads((study.folder / "study.json").read_text()) | {
        "criteria": study.criteria,
        "trials": tuple(json.loads((study.folder / "study.json").read_text())["trials"]),
    }
    assert key.as_json()["assignments"] == json.loads((study.folder / "key.json").read_text())["assignments"]
    assert key.systems == SYSTEMS
    assert [trial.id for trial in study.trials] == sorted(key.assignments)
    trial = study.trials[0]
    assert (trial.vocal, trial.a, trial.b) == tuple(f"trials/{trial.id}/{name}.wav" for name in ("vocal", "A", "B"))
    assert study.trial(trial.id) == trial
    assignment = key.assignments[trial.id]
    assert (assignment.system("A"), assignment.system("B")) == (assignment.a, assignment.b)


def test_study_json_names_no_system(made: tuple[Study, Key]) -> None:
    text = (made[0].folder / "study.json").read_text()
    assert not [word for word in (*SYSTEMS, "silence", "song", "seed", "kind") if word in text]


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        put("version", value=2),
        put("format", value="another"),
        put("study_id", value="../../x"),
        put("study_id", value=7),
        put("trials", value=[]),
        put("trials", 0, "id", value="../../../x"),
        put("trials", 0, "id", value="f" * 12),  # no longer sorted
        put("trials", 0, "a_sha256", value=None),
        put("trials", 0, "a_sha256", value="x"),
        put("trials", 0, value=[]),
        put("trials", value={"a": 1}),
        put("trials", 0, "system", value="random"),
        put("criteria", value=["loudness"]),
        put("criteria", value=[]),
        put("criteria", value=["overall", "overall"]),
        put("duration_s", value=-1),
        put("duration_s", value="long"),
        put("duration_s", value=math.inf),
        put("rate_hz", value=10.5),
        put("more", value=1),
        lambda content: content.pop("question"),
        lambda content: content["trials"].append(content["trials"][-1]),
    ],
)
def test_a_damaged_study_is_refused(made: tuple[Study, Key], edit: Callable[[dict[str, Any]], None]) -> None:
    file = made[0].folder / "study.json"
    change(file, edit)
    with pytest.raises(RequestError, match=r"study\.json") as caught:
        Study.load(file.parent)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"9" * 5000, b'{"a": NaN}']
)
@pytest.mark.parametrize("name", ["study.json", "key.json"])
def test_what_is_no_json_object_is_refused(made: tuple[Study, Key], name: str, content: bytes) -> None:
    study, _ = made
    (study.folder / name).write_bytes(content)
    with pytest.raises(RequestError, match=name):
        Study.load(study.folder) if name == "study.json" else Key.load(study.folder / name, study)


def test_absent_folders_and_files_are_refused(made: tuple[Study, Key], tmp_path: Path) -> None:
    study, _ = made
    with pytest.raises(RequestError, match="no such study folder"):
        Study.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"study\.json: cannot be read"):
        Study.load(tmp_path / "empty")
    with pytest.raises(RequestError, match=r"moved\.json: cannot be read.*--key"):
        Key.load(tmp_path / "moved.json", study)


@pytest.mark.parametrize("sound", ["vocal", "A", "B"])
def test_a_missing_or_changed_sound_is_refused(made: tuple[Study, Key], sound: str) -> None:
    study, _ = made
    file = study.folder / "trials" / study.trials[3].id / f"{sound}.wav"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RequestError, match=f"{sound}.wav: was changed"):
        Study.load(study.folder)
    file.unlink()
    with pytest.raises(RequestError, match=f"{sound}.wav: cannot be read"):
        Study.load(study.folder)


def test_the_key_of_another_study_is_refused(made: tuple[Study, Key], tmp_path: Path) -> None:
    study, _ = made
    other, _ = make_tiny_study(tmp_path / "other", seed=1)
    with pytest.raises(RequestError, match="is the key of another study"):
        Key.load(other.folder / "key.json", study)


def test_the_key_of_a_study_that_was_edited_is_refused(made: tuple[Study, Key]) -> None:
    study, _ = made
    change(study.folder / "study.json", put("question", value="Which one is louder?"))
    with pytest.raises(RequestError, match="is the key of another study"):
        Key.load(study.folder / "key.json", Study.load(study.folder))


@pytest.mark.parametrize(
    "edit",
    [
        put("seed", value="x"),
        put("systems", value=["ground_truth"]),  # pairs of systems that are not listed
        put("assignments", value={}),
        put("assignments", value=[]),
        lambda content: content["assignments"].popitem(),
        lambda content: content["assignments"].update({"0" * 12: next(iter(content["assignments"].values()))}),
        lambda content: next(iter(content["assignments"].values())).update(kind="other"),
        lambda content: next(iter(content["assignments"].values())).update(a=""),
        lambda content: next(iter(content["assignments"].values())).update(kind="same"),
        lambda content: next(iter(content["assignments"].values())).update(kind="silence"),
    ],
)
def test_a_damaged_key_is_refused(made: tuple[Study, Key], edit: Callable[[dict[str, Any]], None]) -> None:
    study, _ = made
    change(study.folder / "key.json", edit)
    with pytest.raises(RequestError, match=r"key\.json"):
        Key.load(study.folder / "key.json", study)


@pytest.mark.parametrize(
    ("kind", "a", "b", "fits"),
    [
        ("pair", "x", "y", True),
        ("pair", "x", "x", False),
        ("same", "x", "x", True),
        ("same", "x", "y", False),
        ("silence", "silence", "x", True),
        ("silence", "x", "silence", True),
        ("silence", "x", "y", False),
        ("pair", "silence", "x", False),
    ],
)
def test_kind_and_sides_of_a_trial_agree(kind: Any, a: str, b: str, fits: bool) -> None:
    if fits:
        assert Assignment("clip", "song", kind, a, b).kind == kind
    else:
        with pytest.raises(RequestError, match="no trial of the kind"):
            Assignment("clip", "song", kind, a, b)


def test_each_voter_has_an_order_of_their_own_and_keeps_it(made: tuple[Study, Key]) -> None:
    study, _ = made
    voters = [f"voter {index}" for index in range(400)]
    orders = {voter: study.order_for(voter) for voter in voters}
    assert study.order_for("voter 7") == orders["voter 7"]
    places: Counter[tuple[str, int]] = Counter()
    first: Counter[str] = Counter()
    for order in orders.values():
        assert sorted(trial.id for trial, _ in order) == [trial.id for trial in study.trials]
        counts = Counter(presentation for _, presentation in order)
        assert abs(counts["AB"] - counts["BA"]) <= len(order) % 2
        places.update((trial.id, place) for place, (trial, _) in enumerate(order))
        first.update(trial.id for trial, presentation in order if presentation == "AB")
    n = len(study.trials)
    # a fair die: every trial in every place, and A first in half of the voters, within 5 standard deviations
    mean, spread = 400 / n, (400 / n * (1 - 1 / n)) ** 0.5
    assert all(abs(places[trial.id, place] - mean) < 5 * spread for trial in study.trials for place in range(n))
    assert all(abs(first[trial.id] - 200) < 5 * 10 for trial in study.trials)
