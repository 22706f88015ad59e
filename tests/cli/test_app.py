"""The page: making and cancelling a performance, and a listener's whole visit in a real browser."""

from __future__ import annotations

import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, Browser, browser, free_port
from tiny_band import TinyBand, sing

from hafm_lightning import Accompanist
from hafm_lightning.accompanist import Take
from hafm_lightning.audio import write_audio
from hafm_lightning.cli import main
from hafm_lightning.cli.app import Cancelled, Performance, build_page, files_of, serve, status
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
    for path in files_of(news[-1], str(vocal), tmp_path):
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
