"""``app``: serve the page until Ctrl-C or a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from hafm_lightning import limits
from hafm_lightning.cli.app.page import build_page, import_gradio
from hafm_lightning.cli.app.performance import stop_all
from hafm_lightning.cli.app.workplace import workplace
from hafm_lightning.cli.band_arguments import add_model_arguments, load_band
from hafm_lightning.cli.outcomes import Stopped
from hafm_lightning.cli.parser import Parser, whole
from hafm_lightning.errors import RequestError

if TYPE_CHECKING:
    import gradio

WAITING_PERFORMANCES = 20
"""Visitors in the queue; later ones are asked to come back."""
STOP_S = 20.0
"""Time for a performance to reach its next frame when the app ends."""


def main(argv: Sequence[str]) -> int:
    """Run the command: serve the page until Ctrl-C."""
    parser = Parser("app", "Serve a web page: upload or record a vocal and listen to its accompaniment.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=whole(1, 65535), default=7860, help="port (default: 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    import_gradio()
    band = load_band(arguments)
    with workplace() as folder, _stop_signals() as stopped:
        page = build_page(band, folder)
        serve(page, str(folder), host=arguments.host, port=arguments.port, inbrowser=arguments.open, block=False)
        try:
            number = stopped.wait()
        finally:
            ended = stop_all(STOP_S)
            page.close(verbose=False)
    sys.stdout.flush()
    if not ended:  # a thread in compiled code would abort the process when the interpreter ends
        os._exit(128 + number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


class _StopSignal:
    """The first signal that asks the app to end."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self.number = int(signal.SIGTERM)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if not self._arrived.is_set():
            self.number = signum
            self._arrived.set()

    def wait(self) -> int:
        """Its number, when it has come."""
        while not self._arrived.wait(1.0):  # without a limit, Windows would not see Ctrl-C
            pass
        return self.number


@contextmanager
def _stop_signals() -> Iterator[_StopSignal]:
    """Receive SIGINT, SIGTERM and SIGHUP in the block, in place of their other handlers."""
    stopped, before = _StopSignal(), {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, stopped.receive)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(page: gradio.Blocks, folder: str, *, host: str, port: int, inbrowser: bool, block: bool = True) -> Any:
    """Launch the page; RequestError when the port is taken."""
    gr = import_gradio()
    fonts = ["system-ui", "sans-serif"]  # the default theme would fetch fonts from the network
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    page.queue(max_size=WAITING_PERFORMANCES)
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            inbrowser=inbrowser,
            theme=theme,
            allowed_paths=[folder],
            max_file_size=limits.current().app_bytes,
            prevent_thread_lock=not block,
            footer_links=[],
        )
    except (OSError, OverflowError) as error:
        raise RequestError(f"port {port} on {host} cannot be used ({error}); choose another one with --port") from error
