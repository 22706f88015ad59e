"""A listener's visit over HTTP, and what nobody may do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_listener import HEADERS, SOUNDS, ScriptedListener
from served_study import FREE, SETTINGS, TOKEN, Served
from tiny_study import make_tiny_study

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.votes import VoteStore


def expected_side(served: Served, voter: str, trial: str, answer: str) -> str:
    """The study's side behind an answer, from the listener's order alone."""
    order = {place.id: presentation for place, presentation in served.study.order_for(voter)}[trial]
    return {"first": order[0], "second": order[1], "tie": "tie"}[answer]


def test_a_visit_stores_each_answer_in_the_sides_of_the_study(served: Served) -> None:
    listener = served.start().listener()
    total = len(served.study.trials)
    for done in range(total):
        state = listener.state()
        assert (state["done"], state["total"]) == (done, total)
        answer = listener.vote(state)
        assert answer.status_code == 201
        assert answer.json()["state"] == listener.state()
    assert listener.state() == {"done": total, "total": total, "trial": None, "next": []}
    votes = served.votes()
    order = served.study.order_for(votes[0].voter)
    assert [(vote.trial, vote.presentation) for vote in votes] == [(trial.id, shown) for trial, shown in order]
    for vote, sent in zip(votes, listener.sent, strict=True):
        wanted = {c: expected_side(served, vote.voter, vote.trial, a) for c, a in sent["answers"].items()}
        assert (vote.choices, vote.confidence, vote.seconds) == (wanted, sent["confidence"], sent["seconds"])


def test_the_sounds_are_those_of_the_listeners_order_and_no_header_tells_more(served: Served) -> None:
    listener = served.start().listener()
    headers = set()
    for _ in served.study.trials:
        state = listener.state()
        heard = {}
        for sound in SOUNDS:
            answer = listener.client.get(f"/sounds/{state['trial']['sounds'][sound]}")
            heard[sound] = hashlib.sha256(answer.content).hexdigest()
            headers.add(json.dumps(sorted(answer.headers.items())))
        listener.vote(state)
        vote = served.votes()[-1]
        trial = served.study.trial(vote.trial)
        sides = {"A": trial.a_sha256, "B": trial.b_sha256}
        first, second = vote.presentation
        assert heard == {"vocal": trial.vocal_sha256, "first": sides[first], "second": sides[second]}
    assert len(headers) == 1, "headers differ between sounds"


def test_two_listeners_get_other_names_and_orders_and_none_tells_a_trial(served: Served) -> None:
    served.start()
    names: list[str] = []
    for _ in range(3):
        listener = served.listener()
        state = listener.state()
        names += [state["trial"]["name"], *state["trial"]["sounds"].values(), *state["next"]]
        text = json.dumps([state, listener.client.get("/api/study").json()])
        assert not any(trial.id in text for trial in served.study.trials)
    assert len(set(names)) == len(names)
    orders = {tuple(trial.id for trial, _ in served.study.order_for(vote)) for vote in names}
    assert len(orders) > 1


def test_a_visit_goes_on_after_a_reload_a_restart_and_with_the_link_on_another_device(served: Served) -> None:
    with ExitStack() as first:
        served._stack = first
        served.start()
        listener = served.listener()
        listener.vote()
        listener.hear(listener.state())
        before = listener.state()
    with ExitStack() as second:
        served._stack = second
        served.start()
        other = ScriptedListener(served.client("192.0.2.9"))
        assert other.client.get("/api/state").status_code == 401
        answer = other.post("/api/resume", {"secret": listener.secret})
        assert answer.json() == before == other.state()
        assert before["trial"]["heard"] == list(SOUNDS)
        assert other.post("/api/votes", other.answer_for(before)).status_code == 201


def test_an_answer_needs_all_three_sounds_in_their_order(served: Served) -> None:
    listener = served.start().listener()
    state = listener.state()
    name = state["trial"]["name"]
    body = listener.answer_for(state)
    for sound in ("second", "first"):
        assert listener.post("/api/plays", {"trial": name, "sound": sound}).status_code == 409
    for sound in SOUNDS:
        assert listener.post("/api/votes", body).status_code == 409
        assert listener.post("/api/plays", {"trial": name, "sound": sound}).status_code == 200
    assert listener.post("/api/votes", body).status_code == 201


def test_a_vote_sent_twice_is_stored_once_and_cannot_be_changed(served: Served) -> None:
    listener = served.start().listener()
    assert listener.vote().json()["new"] is True
    body = listener.sent[0]
    again = listener.post("/api/votes", body | {"seconds": 99})
    assert (again.status_code, again.json()["new"]) == (200, False)
    assert again.json()["state"]["done"] == 1
    other = {"first": "second", "second": "tie", "tie": "first"}
    changed = body | {"answers": {name: other[answer] for name, answer in body["answers"].items()}}
    assert listener.post("/api/votes", changed).status_code == 409
    assert len(served.votes()) == 1
    assert served.votes()[0].seconds == body["seconds"]


def test_no_listener_reaches_anothers_trials_sounds_or_votes(served: Served) -> None:
    served.start()
    ann, bob = served.listener(1), served.listener(2)
    state = ann.state()
    ann.hear(state)
    body = ann.answer_for(state)
    assert bob.post("/api/votes", body).status_code == 404
    assert bob.post("/api/plays", {"trial": body["trial"], "sound": "vocal"}).status_code == 404
    assert bob.client.get(f"/sounds/{state['trial']['sounds']['first']}").status_code == 404
    assert served.client().get(f"/sounds/{state['trial']['sounds']['first']}").status_code == 401
    assert served.votes() == []
    ann.post("/api/votes", body)
    assert bob.state()["done"] == 0
    bob.post("/api/withdraw", {"withdraw": True})
    assert len(served.votes()) == 1


def test_a_later_trial_waits_for_its_turn(served: Served) -> None:
    listener = served.start().listener()
    state = listener.state()
    soon = state["next"]
    assert [listener.client.get(f"/sounds/{name}").status_code for name in soon] == [200] * 3
    listener.vote(state)
    assert listener.client.get(f"/sounds/{state['trial']['sounds']['vocal']}").status_code == 404
    # a listener who knew the name of a later trial could not use it before its turn
    answered = listener.state()["trial"]["name"]
    listener.vote()
    assert listener.post("/api/plays", {"trial": answered, "sound": "vocal"}).status_code == 409


def test_who_withdraws_leaves_nothing_behind(served: Served) -> None:
    served.start()
    ann, bob = served.listener(1), served.listener(2)
    for listener in (ann, ann, bob):
        listener.vote()
    voter = served.votes()[0].voter
    assert ann.post("/api/withdraw", {"withdraw": 1}).status_code == 400
    answer = ann.post("/api/withdraw", {"withdraw": True})
    assert answer.status_code == 200
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert [vote.voter == voter for vote in served.votes()] == [False]
    again = ScriptedListener(served.client())
    assert again.post("/api/resume", {"secret": ann.secret}).status_code == 410
    again.client.cookies.set(f"listener-{served.study.study_id}", ann.secret)
    assert again.client.get("/api/state").status_code == 410
    assert again.post("/api/votes", ann.sent[0]).status_code == 410
    with sqlite3.connect(served.votes_file) as connection:
        assert connection.execute("SELECT COUNT(*) FROM plays WHERE voter = ?", (voter,)).fetchone() == (0,)


def test_a_withdrawal_that_was_cut_off_is_finished_at_the_next_start(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as first:
        served._stack = first
        served.start()
        listener = served.listener()
        listener.vote()
        with monkeypatch.context() as broken:
            broken.setattr(VoteStore, "remove", lambda *_: (_ for _ in ()).throw(RequestError("/secret: killed here")))
            answer = listener.post("/api/withdraw", {"withdraw": True})
        assert answer.status_code == 503
        assert "/secret" not in answer.text
        assert len(served.votes()) == 1
    with ExitStack() as second:
        served._stack = second
        served.start()
        assert served.votes() == []


def test_the_secret_is_in_no_file(served: Served) -> None:
    listener = served.start().listener()
    listener.vote()
    for path in served.study.folder.glob("votes.sqlite*"):
        assert listener.secret.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "cookie", ["", "x", "A" * 43, "A" * 42 + "é", "../../key.json", "' OR 1=1 --", "A" * 5000, '"', "%00"]
)
def test_a_forged_cookie_opens_nothing(served: Served, cookie: str) -> None:
    served.start().listener()
    header = {"cookie": f"listener-{served.study.study_id}={cookie}".encode()}
    for path in ("/api/state", "/api/link", "/sounds/" + "0" * 32):
        answer = served.client().get(path, headers=header)
        assert answer.status_code == 401, answer.text
    assert served.client().post("/api/votes", json={}, headers={**HEADERS, **header}).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/key.json", "/study.json", "/votes.sqlite", "/static/", "/static", "/trials/", "/sounds/", "/static/page.html",
        "/static/../study.py", "/static/%2e%2e/settings.py", "/sounds/..%2f..%2fkey.json", "/sounds/%2e%2e%2fkey.json",
        "/sounds/..\\key.json", "//etc/passwd", "/sounds/vocal.wav", "/admin/", "/api/", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_no_other_path_is_served(served: Served, path: str) -> None:
    listener = served.start().listener()
    answer = listener.client.get(path, follow_redirects=False)
    assert answer.status_code in (307, 404)
    assert str(served.study.folder) not in answer.text
    assert "ground_truth" not in answer.text


def test_no_trial_id_or_side_opens_a_sound(served: Served) -> None:
    listener = served.start().listener()
    for trial in served.study.trials:
        for name in (trial.id, trial.a, f"{trial.id}/A.wav", trial.a_sha256, trial.a_sha256[:32]):
            assert listener.client.get(f"/sounds/{name}").status_code == 404
        body = {"trial": trial.id, "sound": "vocal"}
        assert listener.post("/api/plays", body).status_code == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("trial", "answers", "confidence", "seconds")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_wrong_body_is_stored_or_breaks_the_server(hostile: Served, data: st.DataObject) -> None:
    listener, good = hostile.hostile  # type: ignore[attr-defined]
    body = dict(good)
    kind = data.draw(st.sampled_from(("field", "answer", "missing", "more", "whole", "bytes")))
    if kind == "field":
        name = data.draw(st.sampled_from(FIELDS))
        body[name] = data.draw(JSON.filter(lambda value: not is_good(name, value)))
    elif kind == "answer":
        wrong = JSON.filter(lambda value: value not in ("first", "second", "tie"))
        body["answers"] = dict(good["answers"], rhythm=data.draw(wrong))
    elif kind == "missing":
        del body[data.draw(st.sampled_from(FIELDS))]
    elif kind == "more":
        body[data.draw(st.text(max_size=10).filter(lambda name: name not in FIELDS))] = data.draw(JSON)
    content: bytes = json.dumps(data.draw(JSON) if kind == "whole" else body).encode()
    if kind == "bytes":
        content = data.draw(st.binary(max_size=100))
    answer = listener.client.post("/api/votes", content=content, headers=HEADERS)
    assert answer.status_code in (400, 404), answer.text
    assert hostile.votes() == []


def is_good(name: str, value: Any) -> bool:
    """Whether another value than the test's would do as well."""
    if name == "confidence":
        return type(value) is int and 1 <= value <= 5
    return name == "seconds" and type(value) in (int, float) and 0 <= value <= 7 * 24 * 3600


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ExitStack() as stack:
        served = Served(*make_tiny_study(tmp_path_factory.mktemp("study"), clips=1), stack)
        served.start(dataclasses.replace(SETTINGS, limits=FREE))
        listener = served.listener()
        state = listener.state()
        listener.hear(state)
        served.hostile = (listener, listener.answer_for(state))  # type: ignore[attr-defined]
        yield served


def test_only_who_agrees_takes_part(served: Served) -> None:
    served.start()
    listener = ScriptedListener(served.client())
    for body in ({"agree": False}, {"agree": 1}, {}, [], {"agree": True, "more": 1}):
        assert listener.post("/api/join", body).status_code == 400
    assert listener.client.get("/api/state").status_code == 401


@pytest.fixture
def invited(served: Served) -> Callable[[str], Any]:
    served.start(dataclasses.replace(SETTINGS, invitations=frozenset({"green apple", "yellow pear"}), limits=FREE))
    return lambda code: ScriptedListener(served.client()).join(invitation=code)


def test_an_invitation_is_for_one_listener(served: Served, invited: Callable[[str], Any]) -> None:
    for code in ("", "green", "green appleX", None, 7, ["green apple"], "\ud800", "x" * 5000):
        assert invited(code).status_code == 403, code  # type: ignore[arg-type]
    assert ScriptedListener(served.client()).join().status_code == 403
    lost = invited("green apple").json()["secret"]
    ann = ScriptedListener(served.client())
    assert ann.join(invitation=" green apple ").status_code == 201, "the first answer may have been lost"
    assert ScriptedListener(served.client()).post("/api/resume", {"secret": lost}).status_code == 401
    ann.vote()
    assert invited("green apple").status_code == 403, "somebody votes under it"
    assert invited("yellow pear").status_code == 201
    ann.post("/api/withdraw", {"withdraw": True})
    assert invited("green apple").status_code == 403, "withdrawn"
    for path in served.study.folder.glob("votes.sqlite*"):
        assert b"green apple" not in path.read_bytes()


def test_the_admin_sees_counts_and_votes_with_the_token_alone(served: Served) -> None:
    served.start()
    listener = served.listener()
    listener.vote()
    client = served.client()
    for header in ({}, {"authorization": TOKEN}, {"authorization": "Bearer "}, {"authorization": f"Basic {TOKEN}"}):
        for path in ("/admin/counts", "/admin/votes.jsonl"):
            assert client.get(path, headers=header).status_code == 401
    header = {"authorization": f"Bearer {TOKEN}"}
    counts = client.get("/admin/counts", headers=header).json()
    vote = served.votes()[0]
    assert counts["votes"] == 1
    assert counts["controls"] is False
    assert [row["trial"] for row in counts["trials"] if row["votes"]] == [vote.trial]
    assert counts["listeners"][0]["voter"] == vote.voter
    assert not set(counts["listeners"][0]) & {"silence_failed", "same_tied"}
    lines = client.get("/admin/votes.jsonl", headers=header)
    stored = [json.loads(line) for line in lines.text.splitlines()]
    assert stored[0]["study_id"] == served.study.study_id
    assert stored[1]["vote"]["trial"] == vote.trial
    assert listener.client.get("/admin/counts").status_code == 401


def test_controls_are_counted_where_the_key_is_given(served: Served) -> None:
    served.start(dataclasses.replace(SETTINGS, limits=FREE), served.key)
    listener = served.listener(3)
    for _ in served.study.trials:
        listener.vote()
    header = {"authorization": f"Bearer {TOKEN}"}
    row = served.client().get("/admin/counts", headers=header).json()["listeners"][0]
    by_trial = {vote.trial: vote.choices["overall"] for vote in served.votes()}
    silence = next(trial for trial, entry in served.key.assignments.items() if entry.kind == "silence")
    same = next(trial for trial, entry in served.key.assignments.items() if entry.kind == "same")
    silent_side = "A" if served.key.assignments[silence].a == "silence" else "B"
    assert row["silence_trials"] == row["same_trials"] == 1
    assert row["silence_failed"] == (by_trial[silence] in (silent_side, "tie"))
    assert row["same_tied"] == (by_trial[same] == "tie")


def test_a_full_disk_is_told_without_a_path_and_the_vote_can_be_sent_again(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = served.start().listener()
    state = listener.state()
    listener.hear(state)
    body = listener.answer_for(state)
    with monkeypatch.context() as broken:
        broken.setattr(VoteStore, "add", lambda *_: (_ for _ in ()).throw(RequestError("/srv/x: disk is full")))
        answer = listener.post("/api/votes", body)
        assert answer.status_code == 503
        assert "/srv" not in answer.text
    assert "/srv/x: disk is full" in capsys.readouterr().err
    assert listener.post("/api/votes", body).status_code == 201


def test_a_mistake_of_ours_shows_nothing_of_the_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = served.start().listener()
    monkeypatch.setattr(VoteStore, "trials_of", lambda *_: 1 / 0)
    answer = listener.client.get("/api/state")
    assert answer.status_code == 500
    assert "Zero" not in answer.text
    assert "content-security-policy" in answer.headers


def test_sounds_of_different_sizes_are_refused(served: Served) -> None:
    path = served.study.folder / served.study.trials[0].a
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(RequestError, match="different sizes"):
        served.start()


def test_a_second_server_of_the_same_votes_is_refused(served: Served) -> None:
    served.start()
    with pytest.raises(RequestError, match="in use by process"):
        served.start()
