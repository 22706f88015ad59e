"""The demo's page: players, figures and scores with their intervals, in one HTML file beside its sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.cli import DONE
from hafm_lightning.cli import main as run_command
from hafm_lightning.cli.demo.scores import CONTROLS, MODEL, SYSTEMS, TRUTH, Listening
from hafm_lightning.evaluation.card.pictures import log_mel_picture
from hafm_lightning.files import write_atomic
from hafm_lightning.page.document import Cell, Page, Player, Section, Table, render

PLAYERS = 6
"""Held-out songs that the page plays."""
SHOWN = ("chroma_cosine", "onset_f1", "chord_accuracy", "beat_f_measure", "beat_phase")


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
    curves = sorted(path.relative_to(folder).as_posix() for path in (folder / "curves").glob("*.png"))
    return {"spectrogram": ["spectrogram.png"], "curves": curves}


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write ``report.html``; returns its path."""
    held_out, music, pictures = report["held_out"], report["music"], report["pictures"]
    about = (
        f"Three small stages, trained within {report['minutes']:g} minutes in all on synthesised songs, accompany "
        f"{held_out['songs']} songs outside the training data. Generation took "
        f"{report['real_time_factor']:.2f} s for a second of music."
    )
    scores = "Mean over songs and 95 % interval. Read the model between random pairing and ground truth."
    losses = (
        f"Cross-entropy in nats on {held_out['clips']} held-out clips of {held_out['clip_seconds']:g} s, and its "
        "rise without the conditions and with those of another song; 95 % interval over songs."
    )
    fad = music["fad"]
    values = ", ".join(f"{name} {value:.2f}" for name, value in fad["values"].items())
    distances = (
        f"{values}: over {fad['embedding']} ({fad['dimensions']} dimensions, {fad['rows']} rows, clips of "
        f"{fad['seconds_a_clip']:g} s at {fad['rate_hz']} Hz; reference: {fad['reference']}). "
        "It needs no download and is not comparable with a VGGish FAD."
    )
    files = {"vocal": "vocal.wav", "with the model's band": "mix.wav", "the true band": "truth.wav"}
    players = tuple(
        Player(clip, "", {label: f"takes/{clip}/{file}" for label, file in files.items()})
        for clip in report["takes"][:PLAYERS]
    )
    systems, minus = music["systems"], music["model_minus"]
    means = [(name, *(_interval(systems[name][key]) for key in SHOWN)) for name in SYSTEMS]
    leads = [(f"model - {name}", *(_interval(minus[name][key], True) for key in SHOWN)) for name in CONTROLS]
    keys = ("conditioning_gain", "other_clip_gap")
    gains = [
        (name, stage["steps"], _interval(stage["loss"]), *(_interval(stage[key], True) for key in keys))
        for name, stage in report["stages"].items()
    ]
    stages = Table.of(("stage", "steps", "CE", "CE(null) - CE", "CE(other song) - CE"), gains)
    curves = dict.fromkeys(pictures["curves"], "loss and accuracy")
    sections = (
        Section("Listen", players=players),
        Section("Does the music fit the voice?", (scores,), table=Table.of(("system", *SHOWN), means)),
        Section("The model's lead over the controls", table=Table.of(("difference", *SHOWN), leads)),
        Section("Frechet audio distance", (distances,)),
        Section("Does each stage use its conditions?", (losses,), table=stages, pictures=curves),
        Section("The first song", pictures=dict.fromkeys(pictures["spectrogram"], "spectrograms")),
    )
    path = folder / "report.html"
    write_atomic(path, render(Page("A band for a voice", (about,), sections=sections)).encode())
    return path


def _interval(value: Mapping[str, Any], signed: bool = False) -> Cell:
    mean, low, high = (f"{value[key]:{'+' if signed else ''}.3f}" for key in ("mean", "low", "high"))
    lead: Literal["good", "flat"] = "good" if value["low"] > 0 else "flat"
    return Cell(mean, f"[{low}, {high}]", mark=lead if signed else "")
