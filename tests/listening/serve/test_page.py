"""Visits in a real browser: by mouse with a reload midway, by keyboard on a phone, and what the page asks of others."""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Browser, browser
from real_server import RealServer
from tiny_study import make_tiny_study

from hafm_lightning.listening.study import Study
from hafm_lightning.listening.vote import Vote
from hafm_lightning.listening.votes import VoteStore

pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver")
PHONE = 390
WIDTH = "return document.documentElement.scrollWidth"
VISIBLE = "return [...document.querySelectorAll('main > section')].find(s => !s.hidden)?.id ?? ''"
SOURCES = "return performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    folder = tmp_path / "study"
    folder.mkdir()
    return make_tiny_study(folder, clips=1, systems=("ground_truth", "random"))[0]


@pytest.fixture
def server(study: Study) -> Iterator[RealServer]:
    server = RealServer(study.folder)
    server.start()
    yield server
    assert server.process is not None
    if server.process.poll() is None:
        code, _, errors = server.end(signal.SIGTERM)
        assert (code, errors) == (143, "")


def begin(tab: Browser, address: str, look: Callable[[], None] = lambda: None) -> None:
    """Agree, set the volume, and begin; ``look`` at each page on the way."""
    tab.open(address)
    tab.wait(lambda: tab.evaluate(VISIBLE) == "consent")
    look()
    assert is_disabled(tab, "#join"), "no consent was given yet"
    tab.click("#agree")
    tab.click("#join")
    tab.wait(lambda: tab.evaluate(VISIBLE) == "level")
    tab.wait(lambda: tab.evaluate("return document.querySelector('#link').value.length > 40"))
    look()
    assert is_disabled(tab, "#begin")
    tab.click("#noise")
    tab.wait(lambda: not is_disabled(tab, "#begin"))
    tab.click("#begin")
    tab.wait(lambda: tab.evaluate(VISIBLE) == "trial")


def press(tab: Browser, key: str) -> None:
    """Press a key as a person does, wherever the focus is."""
    value = {"Enter": "\ue007"}.get(key, key)
    steps = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
    tab._call("actions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])


def is_disabled(tab: Browser, selector: str) -> bool:
    return bool(tab.evaluate("return document.querySelector(args[0]).matches(':disabled')", selector))


def hear_by_mouse(tab: Browser) -> None:
    """Press the three buttons in turn, each of which waits for the sound before it."""
    for sound in ("vocal", "first", "second"):
        assert is_disabled(tab, "input[name=overall]"), f"answers were open before the {sound} was heard"
        tab.wait(lambda sound=sound: not is_disabled(tab, f"[data-sound={sound}]"))
        tab.click(f"[data-sound={sound}]")
        tab.wait(lambda sound=sound: "heard" in tab.text(f"[data-sound={sound}] .heard"))
    tab.wait(lambda: not is_disabled(tab, "input[name=overall]"))


def answer_by_mouse(tab: Browser, answers: dict[str, str]) -> None:
    for name, value in answers.items():
        assert is_disabled(tab, "#send")
        tab.click(f"input[name={name}][value='{value}']")
    tab.click("#send")


def votes_of(study: Study) -> list[Vote]:
    with VoteStore.open(study.folder / "votes.sqlite", study.study_id) as store:
        return store.votes()


def in_sides(vote: Vote, answers: dict[str, str]) -> dict[str, str]:
    sides = {"first": vote.presentation[0], "second": vote.presentation[1], "tie": "tie"}
    return {name: sides[value] for name, value in answers.items() if name != "confidence"}


def test_a_listener_completes_a_study_with_a_reload_and_a_killed_server_midway(
    study: Study, server: RealServer, tmp_path: Path
) -> None:
    choices = ({"rhythm": "first", "harmony": "second", "overall": "tie", "confidence": "4"},
               {"rhythm": "second", "harmony": "first", "overall": "first", "confidence": "1"},
               {"rhythm": "tie", "harmony": "tie", "overall": "second", "confidence": "5"})  # fmt: skip
    assert len(choices) == len(study.trials)
    with browser(tmp_path / "profile") as tab:
        begin(tab, server.address)
        hear_by_mouse(tab)
        answer_by_mouse(tab, choices[0])
        tab.wait(lambda: "Trial 2 of 3" in tab.text("#progress-text"))
        hear_by_mouse(tab)

        tab.open(server.address)  # a reload midway: heard sounds stay heard
        tab.wait(lambda: "Trial 2 of 3" in tab.text("#progress-text"))
        tab.wait(lambda: not is_disabled(tab, "input[name=overall]"))
        answer_by_mouse(tab, choices[1])
        tab.wait(lambda: "Trial 3 of 3" in tab.text("#progress-text"))
        hear_by_mouse(tab)

        server.end(signal.SIGKILL)
        answer_by_mouse(tab, choices[2])
        tab.wait(lambda: "trying again" in tab.text("#message"))
        tab.open("about:blank")  # and the page is closed before the server is back
        server.start()
        tab.open(server.address)
        tab.wait(lambda: tab.evaluate(VISIBLE) == "done")
        hosts = set(tab.evaluate(SOURCES))
        assert hosts == {server.address}

        votes = votes_of(study)
        assert Counter(vote.trial for vote in votes) == Counter({trial.id: 1 for trial in study.trials})
        for vote, chosen in zip(votes, choices, strict=True):
            assert vote.choices == in_sides(vote, chosen)
            assert vote.confidence == float(chosen["confidence"])

        tab.click("#withdraw")
        tab.click("#withdraw-yes")
        tab.wait(lambda: tab.evaluate(VISIBLE) == "gone")
        assert votes_of(study) == []


def test_the_keyboard_is_enough_on_a_narrow_page_that_does_not_overflow(
    study: Study, server: RealServer, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as tab:
        tab._call("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params={
            "width": PHONE, "height": 844, "deviceScaleFactor": 2, "mobile": True})  # fmt: skip
        seen = set()

        def check_width() -> None:
            seen.add(tab.evaluate(VISIBLE))
            assert tab.evaluate("return innerWidth") == PHONE
            assert tab.evaluate(WIDTH) <= PHONE, tab.evaluate(VISIBLE)

        begin(tab, server.address, check_width)
        for number in range(1, len(study.trials) + 1):
            tab.wait(lambda number=number: f"Trial {number} of" in tab.text("#progress-text"))
            tab.wait(lambda: not is_disabled(tab, "#all"))
            press(tab, "1")  # too early: nothing is answered
            press(tab, "p")
            tab.wait(lambda: not is_disabled(tab, "input[name=overall]"))
            check_width()
            for key in ("1", "u", "2", "0", "1", "3"):  # the second answer replaces the first
                press(tab, key)
            tab.wait(lambda: not is_disabled(tab, "#send"))
            press(tab, "Enter")
        tab.wait(lambda: tab.evaluate(VISIBLE) == "done")
        check_width()
        tab.open(server.address + "/#" + "A" * 43)  # a wrong link shows the beginning and says why
        tab.open("about:blank")
        tab.open(server.address + "/#" + "A" * 43)
        tab.wait(lambda: "belongs to no listener" in tab.text("#message"))
        assert seen == {"consent", "level", "trial", "done"}
    wanted = {"rhythm": "second", "harmony": "tie", "overall": "first"}
    votes = votes_of(study)
    assert len(votes) == len(study.trials)
    for vote in votes:
        assert (vote.choices, vote.confidence) == (in_sides(vote, wanted), 3.0)


def test_the_admin_page_counts_votes(study: Study, server: RealServer, tmp_path: Path) -> None:
    with sqlite3.connect(study.folder / "votes.sqlite") as connection:
        assert connection.execute("SELECT COUNT(*) FROM votes").fetchone() == (0,)
    with VoteStore.for_study(study.folder / "votes.sqlite", study) as store:
        store.add(Vote("ann", study.trials[0].id, "AB", dict.fromkeys(study.criteria, "A"), 3, 9.5))
    assert server.process is not None
    assert server.process.stdout is not None
    lines: list[Any] = [server.process.stdout.readline() for _ in range(3)]
    address = lines[2].split()[1]
    with browser(tmp_path / "profile") as tab:
        tab.open(server.address + "/admin")
        tab.type("#token", "a wrong token")
        tab.click("#enter button")
        tab.wait(lambda: "missing or wrong" in tab.text("#message"))
        tab.open("about:blank")
        tab.open(address)
        tab.wait(lambda: "1 votes" in tab.text("#total"))
        assert study.trials[0].id in tab.text("#trials")
        assert "#" not in tab.evaluate("return location.href"), "the token stays in the address"
