"""The page: making and cancelling a performance, and a listener's whole visit in a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Browser, browser, free_port
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist, limits
from hafm_lightning.accompanist import Take
from hafm_lightning.audio import write_audio
from hafm_lightning.cli import main
from hafm_lightning.cli.app import page as pages
from hafm_lightning.cli.app.command import serve
from hafm_lightning.cli.app.page import (
    BROKEN,
    EMPTY,
    STARTS,
    STARTS_WITHIN_S,
    Turnstile,
    build_page,
    files_of,
    read_upload,
    status,
)
from hafm_lightning.cli.app.performance import Cancelled, Performance
from hafm_lightning.cli.app.workplace import PREFIX, UPLOADS_VARIABLE, workplace
from hafm_lightning.errors import RequestError

HAS_PAGE = find_spec("gradio") is not None
HAS_BROWSER = HAS_PAGE and CHROMIUM is not None and DRIVER is not None


@pytest.fixture(scope="module")
def band(live_band: TinyBand) -> Accompanist:
    return Accompanist.from_checkpoints(**live_band.files(), device="cpu", precision="fp32")


@pytest.fixture
def vocal(tmp_path: Path) -> Path:
    path = tmp_path / "vocal.wav"
    write_audio(path, sing(1.5, 44100))
    return path


def performance(band: Accompanist, vocal: Path) -> Performance:
    return Performance(partial(band.accompany, str(vocal), seed=2, guidance=2.0, temperature=0.9, top_k=100))


def test_a_performance_reports_and_ends_with_the_take(band: Accompanist, vocal: Path, tmp_path: Path) -> None:
    write_audio(vocal, sing(3.0, 44100))
    news = list(performance(band, vocal).run())
    assert isinstance(news[-1], Take)
    shares = [share for share in news if isinstance(share, float)]
    assert shares == sorted(shares)
    assert len(shares) > 1  # it does not wait for the end
    assert news[-1].record["settings"]["guidance"] == 2.0
    for path in files_of(news[-1], sing(3.0, 44100), tmp_path):
        assert Path(path).stat().st_size > 1000


def test_a_cancelled_performance_stops_working(band: Accompanist, vocal: Path) -> None:
    cancelled = performance(band, vocal)
    cancelled.stop()
    with pytest.raises(Cancelled):
        list(cancelled.run())


def test_leaving_the_page_stops_the_work(band: Accompanist, vocal: Path) -> None:
    before = threading.active_count()
    steps = performance(band, vocal).run()
    next(steps)
    steps.close()  # returns when the thread has ended
    assert threading.active_count() == before


def test_a_vocal_that_cannot_be_used_is_the_listeners_business(band: Accompanist, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nobody\.wav"):
        list(performance(band, tmp_path / "nobody.wav").run())


def test_status_shows_a_bar_only_while_there_is_something_to_show() -> None:
    assert 'value="0.250"' in status("Accompanying", 0.25)
    assert "25 %" in status("Accompanying", 0.25)
    assert "<progress" not in status("Ready", None)


# --- what visitors are told ---------------------------------------------------------------------------------------


class Told(Exception):
    """Stands for gradio's Error."""

    def __init__(self, message: str, print_exception: bool = True) -> None:
        super().__init__(message)
        assert not print_exception, "gradio would print a traceback"


@pytest.fixture
def click(band: Accompanist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Press the button of a page, without gradio."""
    functions: list[Any] = []
    fake = SimpleNamespace(Error=Told, Request=object, skip=lambda: None)
    monkeypatch.setattr(pages, "import_gradio", lambda: fake)
    monkeypatch.setattr(pages, "_layout", lambda gr, band, perform, cancel: functions.append(perform))
    build_page(band, tmp_path)
    request = SimpleNamespace(session_hash="a", client=SimpleNamespace(host="10.0.0.1"))

    def press(vocal: str | None, seed: Any = 0, guidance: Any = 1.0, temperature: Any = 0.9, top_k: Any = 100) -> Any:
        return list(functions[0](vocal, seed, guidance, temperature, top_k, "", request))

    return press


def test_a_click_makes_a_take(click: Callable[..., list[Any]], vocal: Path) -> None:
    *_, (instrumental, mix, picture, text) = click(str(vocal))
    assert "Done" in text
    for path in (instrumental, mix, picture):
        assert Path(path).is_file()


def test_an_empty_click_is_told_what_is_missing(click: Callable[..., list[Any]]) -> None:
    with pytest.raises(Told, match=EMPTY):
        click(None)


@pytest.mark.parametrize("name", ["seed", "guidance", "temperature", "top_k"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "3", -5, 1e308])
def test_numbers_that_are_none_get_a_message(
    click: Callable[..., list[Any]], vocal: Path, name: str, value: Any
) -> None:
    if (name, value) in (("seed", -5), ("seed", 1e308), ("top_k", 1e308)):
        assert "Done" in click(str(vocal), **{name: value})[-1][-1]
        return
    with pytest.raises(Told) as told:
        click(str(vocal), **{name: value})
    assert str(vocal.parent) not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"app_bytes": 1000}, "0.001 MB"),
        ({"app_seconds": 1.0}, "0.0166667 minutes"),
        ({"app_channels": 1}, "1 channels"),
        ({"audio_seconds": 1.0}, "h long"),
    ],
)
def test_large_uploads_are_refused_before_they_are_decoded(
    changes: dict[str, float], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret" / "vocal.flac"
    write_audio(path, sing(1.5, 44100, channels=2))
    assert read_upload(str(path)).channels == 2
    monkeypatch.setattr(pages, "read_audio", lambda path: pytest.fail("decoded"))
    with limits.using(**changes), pytest.raises(RequestError, match=said) as refused:
        read_upload(str(path))
    assert "secret" not in str(refused.value)
    assert limits.VARIABLE not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound", bytes(44100)])
def test_files_that_cannot_be_used_are_told_without_the_servers_paths(
    click: Callable[..., list[Any]], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "secret" / "vocal.wav"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Told, match="the vocal") as told:
        click(str(path))
    assert "secret" not in str(told.value)


def test_a_failure_of_the_work_is_told_without_details(
    click: Callable[..., list[Any]],
    vocal: Path,
    band: Accompanist,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **options: Any) -> Take:
        raise RuntimeError("CUDA error at /srv/models/secret")

    monkeypatch.setattr(pages, "files_of", fail)
    with pytest.raises(Told, match=BROKEN.split(".")[0]) as told:
        click(str(vocal))
    assert "secret" not in str(told.value)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_one_address_cannot_start_any_number_of_performances() -> None:
    gate = Turnstile()
    for second in range(STARTS):
        gate.enter("a", second)
    with pytest.raises(RequestError, match="try again in"):
        gate.enter("a", STARTS)
    gate.enter("b", STARTS)
    gate.enter("a", STARTS_WITHIN_S + 0.5)  # the first start is over


# --- uploads and takes --------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_apps_folder_is_private_and_goes_with_it(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UPLOADS_VARIABLE, raising=False)
    abandoned = temporary / f"{PREFIX}dead"
    (abandoned / "uploads").mkdir(parents=True)
    (abandoned / "uploads" / "voice.wav").write_bytes(b"voice")
    (abandoned / ".lock").touch()  # as kill -9 leaves it
    starting = temporary / f"{PREFIX}starting"
    starting.mkdir()
    (temporary / f"{PREFIX}file").write_text("not a folder")
    (temporary / f"{PREFIX}link").symlink_to(temporary / "elsewhere")
    with workplace() as first, workplace() as second:  # two apps live
        assert not abandoned.exists()
        assert first.is_dir()
        for folder in (first, second):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert Path(os.environ[UPLOADS_VARIABLE]).parent == second
    assert [folder.name for folder in temporary.glob(f"{PREFIX}*") if folder.is_dir()] == [starting.name]
    os.utime(starting, (0, 0))
    with workplace():
        assert not starting.exists()
    assert UPLOADS_VARIABLE not in os.environ


GRADIO = """
import os, sys, threading
from types import SimpleNamespace
from unittest.mock import MagicMock

__version__ = "6"
CLICKS = []

class Error(Exception):
    def __init__(self, message, print_exception=True):
        super().__init__(message)

class Button(MagicMock):
    def click(self, function, **options):
        CLICKS.append(function)

class Blocks:
    def __init__(self, **options): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def queue(self, **options): pass
    def close(self, **options): pass
    def launch(self, **options):
        def visit():
            request = SimpleNamespace(session_hash="a", client=SimpleNamespace(host="x"))
            for number, news in enumerate(CLICKS[0](os.environ["VOCAL"], 0, 1.0, 0.9, 100, "", request)):
                if number == 2:
                    print("working", flush=True)
        threading.Thread(target=visit, daemon=True).start()

def skip(): pass
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_in_the_middle_of_a_performance_leaves_no_voice_behind(
    name: str, code: int, live_band: TinyBand, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "gradio.py").write_text(GRADIO)
    write_audio(tmp_path / "long.wav", sing(600.0, 8000))
    sources = Path(pages.__file__).resolve().parents[3]
    changes = {"PYTHONPATH": f"{tmp_path / 'site'}:{sources}", "TMPDIR": str(temporary), "HAFM_QUIET": "1"}
    words = [w for r in ("semantic", "coarse", "fine") for w in (f"--{r}", str(getattr(live_band, r)))]
    process = subprocess.Popen(
        [sys.executable, "-m", "hafm_lightning", "app", *words, "--precision", "fp32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **changes, "VOCAL": str(tmp_path / "long.wav")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    assert list(temporary.glob(f"{PREFIX}*"))
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert not list(temporary.glob(f"{PREFIX}*"))


@pytest.mark.skipif(HAS_PAGE, reason="gradio is installed")
def test_without_gradio_the_command_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--model", "anything"]) == 2
    assert "[app]" in capsys.readouterr().err


HEARD = """
const players = [];
const search = root => root.querySelectorAll('*').forEach(element => {
  if (element.tagName === 'AUDIO' && element.src) players.push(element);
  if (element.shadowRoot) search(element.shadowRoot);
});
search(document.querySelector(args[0]));
if (!players.length) return null;
const bytes = await (await fetch(players[0].src)).arrayBuffer();
const sound = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(bytes);
const samples = sound.getChannelData(0);
let peak = 0;
for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
return {seconds: sound.duration, peak};
"""


def upload(tab: Browser, port: int, vocal: Path) -> None:
    """Open the page anew and give it a vocal."""
    tab.open(f"http://127.0.0.1:{port}")
    tab.wait(lambda: "Ready" in tab.text("#status"))
    tab.wait(lambda: tab.evaluate("return !!document.querySelector('#vocal input[type=file]')"))
    tab.type("#vocal input[type=file]", str(vocal))
    tab.wait(lambda: tab.evaluate("return !document.querySelector('#vocal input[type=file]')"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BROWSER, reason="needs gradio, chromium and chromedriver")
def test_a_listeners_visit(band: Accompanist, vocal: Path, tmp_path: Path) -> None:
    port = free_port()
    long_vocal = tmp_path / "long.wav"
    write_audio(long_vocal, sing(30.0, 44100))
    page = build_page(band, tmp_path)
    serve(page, str(tmp_path), host="127.0.0.1", port=port, inbrowser=False, block=False)
    try:
        with browser(tmp_path / "profile") as tab:
            upload(tab, port, long_vocal)
            tab.click("#start")
            tab.wait(lambda: "Accompanying" in tab.text("#status"))
            tab.click("#cancel")
            tab.wait(lambda: "Cancelled" in tab.text("#status"))

            upload(tab, port, vocal)
            tab.click("#start")
            tab.wait(lambda: "Done" in tab.text("#status"))
            for name in ("#vocal", "#instrumental", "#mix"):
                heard = tab.wait(lambda name=name: tab.evaluate(HEARD, name))
                assert heard["seconds"] == pytest.approx(1.5, abs=1e-3), name
                assert heard["peak"] > 0.01, name
            drawn = "const image = document.querySelector('#spectrograms img'); return image?.naturalWidth ?? 0"
            assert tab.wait(lambda: tab.evaluate(drawn)) > 300
            tab.screenshot(tmp_path / "page.png")
    finally:
        page.close()
