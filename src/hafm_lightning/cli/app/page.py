"""The page: components, what they do, and what visitors are told.

Uploads have lower limits than files on the command line (:mod:`hafm_lightning.limits`, `app_*`), which hold before
anything is decoded. Messages name no paths of the server.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hafm_lightning import limits
from hafm_lightning.accompanist import Accompanist, Take
from hafm_lightning.audio import Audio, probe_audio, read_audio
from hafm_lightning.cli.app.performance import Cancelled, Performance
from hafm_lightning.cli.outcomes import outcome
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.pictures import log_mel_picture

if TYPE_CHECKING:
    import gradio

SHORTEST_PICTURE_S = 0.5
STARTS, STARTS_WITHIN_S = 12, 60.0
"""Performances that one address may start in that time."""
BROKEN = "The accompaniment failed on the server. Try again, or ask the person who runs it."
LABELS = {
    "guidance": "Guidance: how closely it follows the vocal",
    "temperature": "Temperature: 0 is the most conventional",
}
EMPTY = "Upload or record a vocal first."


def import_gradio() -> Any:
    """The gradio module, without its telemetry; RequestError with the command that installs it where it is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise RequestError("the page needs gradio: pip install -c constraints.txt -e '.[app]'") from error
    return gr


class Turnstile:
    """Lets an address start :data:`STARTS` performances within :data:`STARTS_WITHIN_S` seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: dict[str, deque[float]] = {}

    def enter(self, address: str, now_s: float | None = None) -> None:
        """Count a start; RequestError if there were too many."""
        now = time.monotonic() if now_s is None else now_s
        with self._lock:
            for known in [known for known, starts in self._starts.items() if now - starts[-1] > STARTS_WITHIN_S]:
                del self._starts[known]
            starts = self._starts.setdefault(address, deque())
            while starts and now - starts[0] > STARTS_WITHIN_S:
                starts.popleft()
            if len(starts) >= STARTS:
                wait_s = STARTS_WITHIN_S - (now - starts[0])
                raise RequestError(f"Too many requests from your address; try again in {wait_s:.0f} seconds.")
            starts.append(now)


def read_upload(path: str) -> Audio:
    """The vocal that was uploaded; RequestError without its path if it is larger than the app takes, or unreadable."""
    allowed = limits.current()
    try:
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        if size > allowed.app_bytes:
            raise RequestError(f"the file has {size / 1e6:.0f} MB")
        with limits.using(
            audio_seconds=min(allowed.app_seconds, allowed.audio_seconds),
            audio_channels=min(allowed.app_channels, allowed.audio_channels),
        ):
            probe_audio(path)
            return read_audio(path)
    except RequestError as error:
        most = (
            f"{allowed.app_bytes / 1e6:g} MB, {allowed.app_seconds / 60:g} minutes and {allowed.app_channels} channels"
        )
        raise RequestError(f"{without_path(str(error), path)}. Uploads may have {most}.") from error


def without_path(message: str, path: str) -> str:
    """A message with the name of the file in place of its path, and without advice about the server."""
    text = message.replace(path, "the vocal").replace(str(Path(path).resolve()), "the vocal")
    text = text.replace(str(Path(path).parent), "")
    kept = [part for part in text.splitlines()[0].split("; ") if limits.VARIABLE not in part]
    return "; ".join(kept)


def build_page(band: Accompanist, folder: Path) -> gradio.Blocks:
    """The page for a band; its files go to ``folder``."""
    gr = import_gradio()
    running: dict[str, Performance] = {}
    turnstile = Turnstile()

    def message(text: str) -> Exception:
        refused: Exception = gr.Error(text, print_exception=False)
        return refused

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
            raise message(EMPTY)
        numbers = {"seed": seed, "guidance": guidance, "temperature": temperature, "top_k": top_k}
        if any(not isinstance(value, int | float) or not np.isfinite(value) for value in numbers.values()):
            raise message("Seed, guidance, temperature and top-k must be numbers.")
        try:
            turnstile.enter(str(getattr(request.client, "host", "")))
            sound = read_upload(vocal)
        except RequestError as error:
            raise message(str(error)) from error
        make = partial(
            band.accompany,
            sound,
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
                    yield (*files_of(news, sound, folder), status(done, 1.0))
                else:
                    yield gr.skip(), gr.skip(), gr.skip(), status("Accompanying", news)
        except Cancelled:
            yield gr.skip(), gr.skip(), gr.skip(), status("Cancelled", None)
        except RequestError as error:
            raise message(without_path(str(error), vocal)) from error
        except Exception as error:
            print("\n".join(outcome(error)[1]), file=sys.stderr)
            raise message(BROKEN) from error
        finally:
            steps.close()  # type: ignore[attr-defined]
            running.pop(session, None)

    def cancel(request: gradio.Request) -> None:
        performance = running.get(str(request.session_hash))
        if performance is not None:
            performance.stop()

    for function in (perform, cancel):  # gradio passes the request where it can resolve this annotation
        function.__annotations__["request"] = gr.Request
    page: gradio.Blocks = _layout(gr, band, perform, cancel)
    return page


def _layout(gr: Any, band: Accompanist, perform: Callable[..., Any], cancel: Callable[..., Any]) -> Any:
    """Components and what they do."""
    start_from = band.sampling
    styles: Sequence[str] = band.styles
    with gr.Blocks(title="hafm_lightning", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Give a singing voice a band")
        with gr.Row():
            with gr.Column():
                vocal = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Vocal", elem_id="vocal")
                seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                guidance = gr.Slider(0, 10, start_from.guidance, step=0.1, label=LABELS["guidance"])
                temperature = gr.Slider(0, 2, start_from.temperature, step=0.05, label=LABELS["temperature"])
                top_k = gr.Slider(1, 1024, start_from.top_k or 1024, step=1, label="Top-k: tokens to choose from")
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


def files_of(take: Take, vocal: Audio, folder: Path) -> tuple[str, str, str]:
    """Write a take and the picture of both spectrograms into a folder of its own: accompaniment, mix, picture."""
    place = Path(tempfile.mkdtemp(dir=folder))
    take.save(place)
    picture = place / "spectrograms.png"
    log_mel_picture({"vocal": _drawable(vocal), "accompaniment": _drawable(take.instrumental)}, picture)
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
