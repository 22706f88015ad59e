"""``app``: a web page on which a vocal is uploaded or recorded, and its accompaniment played.

One performance runs at a time; others wait in a queue. It runs in a thread of its own, so that the page can show its
progress and stop it: Cancel (or leaving the page) raises inside the decoding loop at the next frame.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hafm_lightning.accompanist import Accompanist, Take
from hafm_lightning.audio import Audio, read_audio
from hafm_lightning.cli.band_arguments import add_model_arguments, load_band
from hafm_lightning.cli.parser import Parser
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.pictures import log_mel_picture

if TYPE_CHECKING:
    import gradio

SHORTEST_PICTURE_S = 0.5
REFRESH_S = 0.25
"""Seconds between two updates of the progress."""


class Cancelled(Exception):
    """The user pressed Cancel."""


class Performance:
    """One take being made in a thread.

    Args:
        make: Makes the take; receives ``on_progress``, as :meth:`Accompanist.accompany` does.
    """

    def __init__(self, make: Callable[..., Take]) -> None:
        self._make = make
        self._stop = threading.Event()
        self._share = 0.0
        self._outcome: Take | Exception | None = None

    def run(self) -> Iterator[float | Take]:
        """Shares of the work that are done, and at the end the take; closing the iterator stops the work.

        Raises:
            Cancelled: :meth:`stop` was called.
            Exception: Any error of the work.
        """
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            worker.join(REFRESH_S)
            while worker.is_alive():
                yield self._share
                worker.join(REFRESH_S)
            if isinstance(self._outcome, Exception):
                raise self._outcome
            assert self._outcome is not None, "the thread ends with a take or an error"
            yield self._outcome
        finally:
            self.stop()
            worker.join()

    def stop(self) -> None:
        """Stop the work at the next frame."""
        self._stop.set()

    def _report(self, share: float) -> None:
        if self._stop.is_set():
            raise Cancelled
        self._share = float(share)

    def _work(self) -> None:
        try:
            self._outcome = self._make(on_progress=self._report)
        except Exception as error:  # noqa: BLE001 - raised in the thread of the page
            self._outcome = error


def main(argv: Sequence[str]) -> int:
    """Run the command: serve the page until Ctrl-C."""
    parser = Parser("app", "Serve a web page: upload or record a vocal and listen to its accompaniment.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    import_gradio()
    with tempfile.TemporaryDirectory(prefix="hafm-app-") as folder:
        page = build_page(load_band(arguments), Path(folder))
        serve(page, folder, host=arguments.host, port=arguments.port, inbrowser=arguments.open)
    return 0


def import_gradio() -> Any:
    """The gradio module, without its telemetry; RequestError with the command that installs it where it is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise RequestError("the page needs gradio: pip install -c constraints.txt -e '.[app]'") from error
    return gr


def serve(page: gradio.Blocks, folder: str, *, host: str, port: int, inbrowser: bool, block: bool = True) -> Any:
    """Launch the page; RequestError when the port is taken."""
    gr = import_gradio()
    fonts = ["system-ui", "sans-serif"]  # the default theme would fetch fonts from the network
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            inbrowser=inbrowser,
            theme=theme,
            allowed_paths=[folder],
            prevent_thread_lock=not block,
            footer_links=[],
        )
    except OSError as error:
        raise RequestError(f"port {port} on {host} cannot be used ({error}); choose another one with --port") from error


def build_page(band: Accompanist, folder: Path) -> gradio.Blocks:
    """The page for a band; its files go to ``folder``."""
    gr = import_gradio()
    running: dict[str, Performance] = {}

    def perform(
        vocal: str | None,
        seed: float,
        guidance: float,
        temperature: float,
        top_k: float,
        style: str,
        request: gradio.Request,
    ) -> Iterator[tuple[Any, Any, Any, str]]:
        if vocal is None:
            raise gr.Error("Upload or record a vocal first.")
        make = partial(
            band.accompany,
            vocal,
            seed=int(seed),
            style=style or None,
            guidance=guidance,
            temperature=temperature,
            top_k=int(top_k),
        )
        session = str(request.session_hash)
        running[session] = performance = Performance(make)
        steps = performance.run()
        try:
            yield None, None, None, status("Reading the vocal", 0.0)
            for news in steps:
                if isinstance(news, Take):
                    seconds, factor = news.instrumental.duration_s, news.real_time_factor
                    done = f"Done: {seconds:.1f} s of music, {factor:.2f} s of work for each second"
                    yield (*files_of(news, vocal, folder), status(done, 1.0))
                else:
                    yield gr.skip(), gr.skip(), gr.skip(), status("Accompanying", news)
        except Cancelled:
            yield gr.skip(), gr.skip(), gr.skip(), status("Cancelled", None)
        except RequestError as error:
            raise gr.Error(str(error)) from error
        finally:
            steps.close()  # type: ignore[attr-defined]
            running.pop(session, None)

    def cancel(request: gradio.Request) -> None:
        performance = running.get(str(request.session_hash))
        if performance is not None:
            performance.stop()

    for function in (perform, cancel):  # gradio passes the request where it can resolve this annotation
        function.__annotations__["request"] = gr.Request
    page: gradio.Blocks = _layout(gr, band.styles, perform, cancel)
    return page


def _layout(gr: Any, styles: Sequence[str], perform: Callable[..., Any], cancel: Callable[..., Any]) -> Any:
    """Components and what they do."""
    with gr.Blocks(title="hafm_lightning", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Give a singing voice a band")
        with gr.Row():
            with gr.Column():
                vocal = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Vocal", elem_id="vocal")
                seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                guidance = gr.Slider(0, 10, 3.0, step=0.1, label="Guidance: how closely it follows the vocal")
                temperature = gr.Slider(0, 2, 0.9, step=0.05, label="Temperature: 0 is the most conventional")
                top_k = gr.Slider(1, 1000, 250, step=1, label="Top-k: tokens to choose from")
                style = gr.Dropdown([("any", ""), *styles], value="", label="Style", visible=bool(styles))
                with gr.Row():
                    start = gr.Button("Accompany", variant="primary", elem_id="start")
                    stop = gr.Button("Cancel", elem_id="cancel")
                state = gr.HTML(status("Ready", None), elem_id="status")
            with gr.Column():
                instrumental = gr.Audio(label="Accompaniment", interactive=False, elem_id="instrumental")
                mix = gr.Audio(label="Mix", interactive=False, elem_id="mix")
                picture = gr.Image(label="Spectrograms", interactive=False, elem_id="spectrograms")
        start.click(
            perform,
            inputs=[vocal, seed, guidance, temperature, top_k, style],
            outputs=[instrumental, mix, picture, state],
            show_progress="hidden",
            concurrency_limit=1,
        )
        stop.click(cancel, queue=False, show_progress="hidden")
    return page


def files_of(take: Take, vocal: str, folder: Path) -> tuple[str, str, str]:
    """Write a take and the picture of both spectrograms into a folder of its own: accompaniment, mix, picture."""
    place = Path(tempfile.mkdtemp(dir=folder))
    take.save(place)
    picture = place / "spectrograms.png"
    log_mel_picture({"vocal": _drawable(read_audio(vocal)), "accompaniment": _drawable(take.instrumental)}, picture)
    return str(place / "instrumental.wav"), str(place / "mix.wav"), str(picture)


def _drawable(audio: Audio) -> Audio:
    """The sound, padded with silence if it is too short for a picture."""
    missing = round(SHORTEST_PICTURE_S * audio.rate_hz) - audio.samples.shape[1]
    return audio if missing <= 0 else Audio(np.pad(audio.samples, ((0, 0), (0, missing))), audio.rate_hz)


def status(text: str, share: float | None) -> str:
    """A line of text over a bar; no bar without a share."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" style="width: 100%"></progress>'
    percent = f" ({100 * share:.0f} %)" if share is not None and share < 1 else ""
    return f"<div>{text}{percent}</div>{bar}"
