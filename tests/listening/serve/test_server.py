"""A real server: twenty listeners at once, killed midway; ports, signals and addresses."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from browser import free_port
from real_server import RealServer
from scripted_listener import HEADERS, ScriptedListener
from tiny_study import make_tiny_study

from hafm_lightning.errors import RequestError
from hafm_lightning.listening.serve.guard import Guard
from hafm_lightning.listening.serve.rates import RateLimit, visitor_of
from hafm_lightning.listening.serve.server import bound
from hafm_lightning.listening.serve.settings import Limits, Rate, ServeSettings
from hafm_lightning.listening.study import Study
from hafm_lightning.listening.votes import VoteStore

LISTENERS = 20
PATIENCE_S = 120


class Persistent:
    """A client that repeats a request until there is an answer, as the page does."""

    def __init__(self, client: Any, repeats: list[str]) -> None:
        self._client, self._repeats = client, repeats

    def _until_answered(self, method: str, path: str, **more: Any) -> Any:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._client.request(method, path, **more)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                return answer
            assert time.monotonic() < until, f"no answer to {path}: {answer}"
            self._repeats.append(path)
            time.sleep(0.1)

    def get(self, path: str) -> Any:
        return self._until_answered("GET", path)

    def post(self, path: str, **more: Any) -> Any:
        return self._until_answered("POST", path, **more)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    folder = tmp_path / "study"
    folder.mkdir()
    return make_tiny_study(folder, clips=1, systems=("ground_truth", "random"))[0]


def test_twenty_listeners_lose_and_double_no_vote_when_the_server_is_killed(study: Study) -> None:
    server = RealServer(study.folder)
    server.start()
    total, repeats, failures = len(study.trials), [], []
    clients = [
        httpx.Client(base_url=server.address, timeout=30, trust_env=False, verify=False) for _ in range(LISTENERS)
    ]
    listeners = [ScriptedListener(Persistent(client, repeats), seed) for seed, client in enumerate(clients)]
    # half way: every listener is about to send a vote, or has sent it
    half = threading.Barrier(LISTENERS + 1)

    def visit(listener: ScriptedListener) -> None:
        try:
            assert listener.join().status_code in (200, 201)
            for done in range(total):
                state = listener.state()
                assert state["done"] == done
                listener.hear(state)
                listener.sent.append(listener.answer_for(state))
                if done == total // 2:
                    half.wait(PATIENCE_S)
                assert listener.post("/api/votes", listener.sent[-1]).status_code in (200, 201)
            assert listener.state()["trial"] is None
        except BaseException as error:
            failures.append(error)
            half.abort()
            raise

    threads = [threading.Thread(target=visit, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    try:
        half.wait(PATIENCE_S)
        time.sleep(0.05)
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
        with VoteStore.open(study.folder / "votes.sqlite", study.study_id) as store:
            stored_at_death = len(store.votes())
        server.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert failures == []
        assert server.end(signal.SIGTERM)[0] == 143
    finally:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
        for client in clients:
            client.close()
    assert repeats, "nobody noticed that the server was killed"
    assert stored_at_death < LISTENERS * total
    with VoteStore.open(study.folder / "votes.sqlite", study.study_id) as store:
        votes = store.votes()
    assert len(votes) == LISTENERS * total
    assert set(Counter((vote.voter, vote.trial) for vote in votes).values()) == {1}
    # every listener's answers, in order, are those of one voter
    sent = Counter(tuple(_in_order_of_sides(listener)) for listener in listeners)
    stored: Counter[tuple[Any, ...]] = Counter()
    for voter in {vote.voter for vote in votes}:
        mine = {vote.trial: vote for vote in votes if vote.voter == voter}
        shown = []
        for trial, order in study.order_for(voter):
            names = {order[0]: "first", order[1]: "second", "tie": "tie"}
            vote = mine[trial.id]
            shown.append((tuple(names[vote.choices[name]] for name in study.criteria), vote.confidence, vote.seconds))
        stored[tuple(shown)] += 1
    assert stored == sent


def _in_order_of_sides(listener: ScriptedListener) -> list[Any]:
    return [(tuple(sent["answers"].values()), sent["confidence"], sent["seconds"]) for sent in listener.sent]


@pytest.mark.parametrize("public", ["", "http://127.0.0.1"])
def test_ctrl_c_ends_a_server_cleanly_and_only_a_proxy_names_addresses(study: Study, public: str) -> None:
    server = RealServer(study.folder, "--public", public)
    server.start()
    with httpx.Client(base_url=server.address, trust_env=False) as client:
        assert client.get("/").status_code == 200
        answers = []
        for number in range(11):  # one guess more than an address has
            headers = {**HEADERS, "X-Forwarded-For": f"192.0.2.{number}"}
            answers.append(client.post("/api/resume", json={"secret": "A" * 43}, headers=headers).status_code)
    assert answers == [401] * 10 + [401 if public else 429]
    code, output, errors = server.end(signal.SIGINT)
    assert (code, errors) == (130, "interrupted\n")
    assert f"listeners: {public or server.address}/\n" in output
    assert f"admin:     {public or server.address}/admin#" in output
    assert len(output.rpartition("#")[2].strip()) >= 32
    assert {path.name for path in study.folder.glob("votes*")} == {"votes.sqlite"}, "the database was not closed"


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    sent: list[Any] = []
    reached: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        reached.append(scope)

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    limits = Limits(body_wait_s=0.05)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"x-listening-study", b"1")]
    scope = {"type": "http", "method": "POST", "path": "/api/votes", "headers": headers, "client": ("192.0.2.1", 1)}
    asyncio.run(Guard(app, ServeSettings(limits=limits))(scope, receive, send))
    assert sent[0]["status"] == 408
    assert reached == []


def test_a_port_in_use_is_refused_in_plain_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 cannot be used .*in use"):
            bound(ServeSettings(port=port))


def test_answers_are_not_held_back() -> None:
    with bound(ServeSettings(port=free_port())) as server:
        assert server.proto == socket.IPPROTO_TCP, "asyncio leaves Nagle's algorithm on"


@pytest.mark.parametrize("host", ["192.0.2.77", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(RequestError, match=host):
        bound(ServeSettings(host=host, port=free_port()))


def test_a_bucket_refills_with_time_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    limit = RateLimit(Rate(2, 60), lambda: now[0])
    assert [limit.take("a"), limit.take("a"), limit.take("b")] == [0, 0, 0]
    assert limit.take("a") == pytest.approx(1.0)
    now[0] = 0.75
    assert limit.wait_s("a") == pytest.approx(0.25)
    now[0] = 1.0
    assert limit.take("a") == 0
    now[0] = 1000.0
    assert [limit.take("a") for _ in range(3)] == [0, 0, pytest.approx(1.0)], "never more than the burst"
    monkeypatch.setattr("hafm_lightning.listening.serve.rates.MOST_BUCKETS", 10)
    for visitor in range(50):
        limit.take(str(visitor))
    assert len(limit._buckets) == 10


def test_an_ipv6_network_is_one_visitor() -> None:
    assert visitor_of("2001:db8::1") == visitor_of("2001:db8::ffff:2")
    assert visitor_of("2001:db8::1") != visitor_of("2001:db8:0:1::1")
    assert visitor_of("::ffff:192.0.2.1") == visitor_of("192.0.2.1") == "192.0.2.1"
    assert visitor_of("fe80::1%eth0") == "fe80::/64"
    assert visitor_of("") == ""
