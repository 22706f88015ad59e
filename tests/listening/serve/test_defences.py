"""What the listening server refuses: strange bodies, other pages, other names, and too many requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from scripted_listener import HEADERS, ScriptedListener
from served_study import SETTINGS, TOKEN, Served

from hafm_lightning.listening.serve.settings import Limits, Rate, ServeSettings


def test_deep_and_large_bodies_are_refused(served: Served) -> None:
    listener = served.start().listener()

    def status(content: Any, **more: str) -> int:
        return int(listener.client.post("/api/votes", content=content, headers=HEADERS | more).status_code)

    assert status(b"[" * 16_000) == 400
    assert status(b"1" * 16_000) == 400
    assert status(b" " * (16 << 10) + b"{}") == 413
    chunks = (b" " * 1000 for _ in range(100))  # no length is given
    assert status(chunks) == 413
    assert status(b"{}", **{"content-length": "-1"}) == 413
    assert listener.state()["done"] == 0


def test_changes_come_from_our_own_page_only(served: Served) -> None:
    listener = served.start().listener()
    body = {"withdraw": True}

    def status(**headers: str) -> int:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return int(listener.client.post("/api/withdraw", json=body, headers=names).status_code)

    own = {"x_listening_study": "1"}
    assert status() == 403
    assert status(**own, origin="http://evil.example") == 403
    assert status(**own, origin="null") == 403
    assert status(**own, origin="http://127.0.0.1:9999") == 403
    assert status(**own, sec_fetch_site="cross-site") == 403
    assert status(**own, sec_fetch_site="same-site") == 403
    assert status(**own, content_type="text/plain") == 415
    assert listener.client.request("DELETE", "/api/votes").status_code == 405
    assert listener.client.get("/api/withdraw").status_code == 405
    assert listener.state()["done"] == 0
    assert status(**own, origin="http://127.0.0.1:8000", sec_fetch_site="same-origin") == 200


def test_a_server_of_this_machine_has_no_other_name(served: Served) -> None:
    served.start()
    assert served.client(base="http://evil.example:8000").get("/api/study").status_code == 421
    for base in ("http://localhost:8000", "http://[::1]:8000", "http://127.0.0.1:8000"):
        assert served.client(base=base).get("/api/study").status_code == 200


def test_behind_a_proxy_cookies_are_secure(served: Served) -> None:
    served.start(ServeSettings(public="https://study.example.org", admin_token=TOKEN))
    answer = ScriptedListener(served.client(base="https://study.example.org")).join()
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-listener-")
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "strict-transport-security" in answer.headers
    assert served.client(base="https://other.example.org").get("/").status_code == 421


@pytest.mark.parametrize("path", ["/", "/admin", "/static/page.js", "/api/study", "/nothing", "/admin/counts"])
def test_every_answer_carries_the_security_headers(served: Served, path: str) -> None:
    headers = served.start().client().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "private, no-store"
    assert "server" not in headers


def test_a_cookie_is_for_this_server_alone(served: Served) -> None:
    cookie = ScriptedListener(served.start().client()).join().headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert served.study.study_id in cookie


def test_no_page_asks_another_server_or_holds_inline_code() -> None:
    folder = Path(__file__).parents[3] / "src/hafm_lightning/listening/serve/static"
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "http:" not in text, path
        assert "https:" not in text, path
        if path.suffix == ".html":
            assert "style=" not in text
            assert "<style" not in text
            assert "<script>" not in text
            assert " on" + "click" not in text


def test_a_visitor_who_asks_too_often_waits_and_others_do_not(served: Served) -> None:
    limits = Limits(address=Rate(5, 60), joins=Rate(1, 60))
    served.start(dataclasses.replace(SETTINGS, limits=limits))
    hasty = served.client("192.0.2.1")
    answers = [hasty.get("/api/study") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert served.client("192.0.2.2").get("/api/study").status_code == 200


def test_listeners_joins_and_wrong_secrets_have_limits_of_their_own(served: Served) -> None:
    limits = Limits(listener=Rate(4, 1), joins=Rate(2, 1), secrets=Rate(3, 1), listeners=3)
    served.start(dataclasses.replace(SETTINGS, limits=limits))
    first = ScriptedListener(served.client())
    assert first.join().status_code == 201
    assert first.join().status_code == 200, "the same listener again"
    assert [first.client.get("/api/state").status_code for _ in range(5)] == [200] * 4 + [429]
    assert ScriptedListener(served.client()).join().status_code == 201
    assert ScriptedListener(served.client()).join().status_code == 429
    assert ScriptedListener(served.client("192.0.2.2")).join().status_code == 201
    assert ScriptedListener(served.client("192.0.2.3")).join().status_code == 503, "the study is full"
    wrong = {"secret": "A" * 43}
    guesses = [ScriptedListener(served.client("192.0.2.4")).post("/api/resume", wrong) for _ in range(4)]
    assert [guess.status_code for guess in guesses] == [401] * 3 + [429]
    admin = served.client("192.0.2.5")
    tries = [admin.get("/admin/counts", headers={"authorization": f"Bearer {n}"}).status_code for n in range(4)]
    assert tries == [401] * 3 + [429]
    assert admin.get("/admin/counts", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 429


def test_forged_cookies_do_not_keep_out_others_at_the_same_address(served: Served) -> None:
    served.start()
    honest = ScriptedListener(served.client("192.0.2.1"))
    honest.join()
    forger = served.client("192.0.2.1")
    forger.cookies.set(f"listener-{served.study.study_id}", "A" * 43)
    statuses = [forger.get("/api/state").status_code for _ in range(15)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert honest.client.get("/api/state").status_code == 200
