"""A headless Chromium driven through chromedriver's own protocol (W3C WebDriver); no package needed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which WebDriver passes element ids


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Browser:
    """One tab."""

    def __init__(self, base: str, session: str) -> None:
        self._base = f"{base}/session/{session}"

    def _call(self, path: str, **body: Any) -> Any:
        return call(f"{self._base}/{path}", body)

    def open(self, address: str) -> None:
        self._call("url", url=address)

    def element(self, selector: str) -> str:
        return str(self._call("element", using="css selector", value=selector)[ELEMENT])

    def type(self, selector: str, text: str) -> None:
        """Type into an element; for a file input, the path to upload."""
        self._call(f"element/{self.element(selector)}/value", text=text)

    def click(self, selector: str) -> None:
        self._call(f"element/{self.element(selector)}/click")

    def evaluate(self, script: str, *arguments: Any) -> Any:
        """Run an async function body in the page; its result."""
        wrapped = (
            "const done = arguments[arguments.length - 1];"
            f"(async (...args) => {{ {script} }})(...arguments).then(done, e => done({{error: String(e)}}));"
        )
        return self._call("execute/async", script=wrapped, args=list(arguments))

    def wait(self, ready: Callable[[], Any], limit_s: float = 60) -> Any:
        """Poll until ``ready`` gives something true; that thing."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if result := ready():
                return result
            time.sleep(0.1)
        raise AssertionError(f"nothing after {limit_s} s; the page says: {self.text('body')[:500]}")

    def text(self, selector: str) -> str:
        return str(self.evaluate("return document.querySelector(args[0])?.innerText ?? ''", selector))

    def screenshot(self, path: Path) -> None:
        import base64

        with urllib.request.urlopen(f"{self._base}/screenshot", timeout=60) as answer:
            path.write_bytes(base64.b64decode(json.load(answer)["value"]))


def call(address: str, body: dict[str, Any], method: str = "POST") -> Any:
    data = None if method == "DELETE" else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from error


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A tab in a new Chromium with an empty profile."""
    assert CHROMIUM is not None
    assert DRIVER is not None
    port = free_port()
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1300,1000",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    options = {"binary": CHROMIUM, "args": flags}
    try:
        until = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{base}/status", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < until, "chromedriver did not start"
                time.sleep(0.1)
        session = call(f"{base}/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        session_id = session["sessionId"]
        try:
            call(f"{base}/session/{session_id}/timeouts", {"script": 60_000})
            yield Browser(base, session_id)
        finally:
            call(f"{base}/session/{session_id}", {}, method="DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=30)
