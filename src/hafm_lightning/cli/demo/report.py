"""The demo's page: players, figures and scores with their intervals, in one HTML file beside its sounds."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.cli import DONE
from hafm_lightning.cli import main as run_command
from hafm_lightning.cli.demo.scores import CONTROLS, MODEL, SYSTEMS, TRUTH, Listening
from hafm_lightning.evaluation.card.pictures import log_mel_picture
from hafm_lightning.files import write_atomic

PLAYERS = 6
"""Held-out songs that the page plays."""
SHOWN = ("chroma_cosine", "onset_f1", "chord_accuracy", "beat_f_measure", "beat_phase")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #ddd; }
audio { width: 17rem; } img { max-width: 100%; } .good { color: #06722b; } .flat { color: #8a5a00; }
"""


def write_pictures(
    folder: Path, listenings: Sequence[Listening], rate_hz: int, runs: Mapping[str, Path]
) -> dict[str, list[str]]:
    """Write vocal and truth beside the takes that the page plays, a spectrogram, and the runs' loss curves.

    Returns:
        ``spectrogram`` and ``curves`` -> files relative to ``folder``.
    """
    for listening in listenings[:PLAYERS]:
        place = folder / "takes" / listening.segment.clip_id
        write_audio(place / "vocal.wav", Audio(listening.vocal[None], rate_hz))
        write_audio(place / "truth.wav", Audio(listening.systems[TRUTH][None], rate_hz))
    first = listenings[0]
    sounds = {"vocal": first.vocal, "model": first.systems[MODEL], TRUTH: first.systems[TRUTH]}
    log_mel_picture({name: Audio(sound[None], rate_hz) for name, sound in sounds.items()}, folder / "spectrogram.png")
    code = run_command(["curves", *map(str, runs.values()), "--out", str(folder / "curves")])
    if code != DONE:
        raise RuntimeError(f"curves ended with exit code {code}")
    curves = sorted(str(path.relative_to(folder)) for path in (folder / "curves").glob("*.png"))
    return {"spectrogram": ["spectrogram.png"], "curves": curves}


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write ``report.html``; returns its path."""
    held_out, music = report["held_out"], report["music"]
    parts = [
        "<h1>A band for a voice</h1>",
        f"<p>Three small stages, trained within {report['minutes']:g} minutes in all on synthesised songs, accompany "
        f"{held_out['songs']} songs that they never heard. Generation took {report['real_time_factor']:.2f} s for a "
        "second of music.</p>",
        "<h2>Listen</h2>",
        _players(report["takes"][:PLAYERS]),
        "<h2>Does the music fit the voice?</h2>",
        "<p>Mean over songs and 95 % interval. Read the model between random pairing and ground truth.</p>",
        _systems_table(music["systems"]),
        "<h3>The model's lead over the controls</h3>",
        _leads_table(music["model_minus"]),
        _distances(music["fad"]),
        "<h2>Does each stage listen?</h2>",
        f"<p>Cross-entropy in nats on {held_out['clips']} held-out clips of {held_out['clip_seconds']:g} s; what is "
        "lost when the conditions are taken away, or are another song's; 95 % interval over songs.</p>",
        _stages_table(report["stages"]),
        *(f'<img src="{html.escape(name)}" alt="loss and accuracy">' for name in report["pictures"]["curves"]),
        "<h2>The first song</h2>",
        *(f'<img src="{html.escape(name)}" alt="spectrograms">' for name in report["pictures"]["spectrogram"]),
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>hafm_lightning demo</title><style>{STYLE}</style>'
    path = folder / "report.html"
    write_atomic(path, (head + "\n".join(parts) + "\n").encode())
    return path


def _players(clips: Sequence[str]) -> str:
    names = (("vocal.wav", "vocal"), ("mix.wav", "with the model's band"), ("truth.wav", "the true band"))
    rows = []
    for clip in clips:
        cells = "".join(
            f'<td><audio controls preload="none" src="takes/{html.escape(clip)}/{file}"></audio></td>'
            for file, _ in names
        )
        rows.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th>{label}</th>" for _, label in names)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _interval(value: Mapping[str, Any], signed: bool = False) -> str:
    form = "{:+.3f}" if signed else "{:.3f}"
    kind = "good" if signed and value["low"] > 0 else "flat" if signed else ""
    text = f"{form.format(value['mean'])} [{form.format(value['low'])}, {form.format(value['high'])}]"
    return f'<td class="{kind}">{text}</td>'


def _table(head: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr><td>{html.escape(name)}</td>{content}</tr>" for name, content in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _systems_table(systems: Mapping[str, Any]) -> str:
    rows = [(name, "".join(_interval(systems[name][metric]) for metric in SHOWN)) for name in SYSTEMS]
    return _table(["", *SHOWN], rows)


def _leads_table(leads: Mapping[str, Any]) -> str:
    rows = [
        (f"model - {name}", "".join(_interval(leads[name][metric], signed=True) for metric in SHOWN))
        for name in CONTROLS
    ]
    return _table(["", *SHOWN], rows)


def _stages_table(stages: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            f"<td>{facts['steps']}</td>"
            + _interval(facts["loss"])
            + _interval(facts["conditioning_gain"], signed=True)
            + _interval(facts["other_clip_gap"], signed=True),
        )
        for name, facts in stages.items()
    ]
    return _table(["stage", "steps", "CE", "CE(null) - CE", "CE(other song) - CE"], rows)


def _distances(fad: Mapping[str, Any]) -> str:
    values = ", ".join(f"{html.escape(name)} {value:.2f}" for name, value in fad["values"].items())
    return (
        f"<p>Frechet audio distance over <code>{html.escape(fad['embedding'])}</code> ({fad['dimensions']} dimensions, "
        f"{fad['rows']} rows, clips of {fad['seconds_a_clip']:g} s at {fad['rate_hz']} Hz; reference: "
        f"{html.escape(fad['reference'])}): {values}. It needs no download and is not comparable with a VGGish FAD.</p>"
    )
