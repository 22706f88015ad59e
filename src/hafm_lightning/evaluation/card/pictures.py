"""Spectrograms as PNG files, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch

from hafm_lightning.audio import Audio, resample
from hafm_lightning.evaluation.embeddings import log_mel
from hafm_lightning.files import write_atomic

LOW, HIGH = -4.6, 3.0
"""Colour range of log-mel values: the front end's floor is log(0.01) = -4.6."""


def log_mel_picture(sounds: Mapping[str, Audio], path: Path) -> None:
    """Write the log-mel spectrograms (16 kHz, 64 bands) of named sounds, one above the other, to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.7 * len(sounds)), layout="constrained")
    axes = figure.subplots(len(sounds), 1, sharex=True, squeeze=False)
    for axis, (name, audio) in zip(axes[:, 0], sounds.items(), strict=True):
        samples = resample(audio.mono().samples[0], audio.rate_hz, log_mel.RATE_HZ)
        frames = log_mel.log_mel(torch.from_numpy(samples)).numpy()
        box = (0, audio.duration_s, 0, log_mel.BANDS)
        axis.imshow(frames.T, origin="lower", aspect="auto", interpolation="nearest", extent=box, vmin=LOW, vmax=HIGH)
        axis.set_ylabel(f"{name}\nmel band")
    axes[-1, 0].set_xlabel("seconds")
    content = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png")
    write_atomic(path, content.getvalue())
