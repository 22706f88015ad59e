"""Vocals separated from the mixtures of the very segments that are evaluated with clean ones.

A model trained on separated vocals may rely on what separation leaves behind; the gap between clean and separated
vocals measures it (SingSong, arXiv 2301.12662). The separated vocals come from a folder, or from a separation model.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hafm_lightning.audio import Audio, Samples, read_audio, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import MusicClip, Segment
from hafm_lightning.evaluation.systems.base import with_length
from hafm_lightning.files import sha256_of_json
from hafm_lightning.songs.separation import SeparationSettings, Separator, load_separator
from hafm_lightning.songs.stems import probe_song, read_stretch, to_stereo


class SeparatedVocals:
    """Separated vocals from ``folder`` (``<song>/vocals.wav``), or, if that is empty, from a separation model."""

    def __init__(self, folder: str, separation: SeparationSettings) -> None:
        self.arguments, self.folder = (folder, separation), Path(folder)
        self.separator: Separator | None = None if folder else load_separator(separation)
        if not self.folder.is_dir():
            raise RequestError(f"no folder {self.folder} of separated vocals; correct `separated`")

    @property
    def identity(self) -> str:
        """What made the vocals: the folder with its files' names and sizes, or the separation model."""
        if self.separator is not None:
            return str(self.separator.identity)
        files = [(path.parent.name, path.stat().st_size) for path in sorted(self.folder.glob("*/vocals.wav"))]
        return f"folder {self.folder} ({len(files)} vocals, {sha256_of_json(files)[:12]})"

    def read(self, segment: Segment) -> Audio:
        """The segment's separated vocal; RequestError if the file or the mixture is missing or damaged."""
        if self.separator is None:
            path = self.folder / segment.song.id / "vocals.wav"
            return read_audio(path, start_s=segment.start_s, duration_s=segment.duration_s)
        if not segment.song.mixture:
            raise RequestError(f"{segment.song.id}: no mixture to separate")
        info, rate_hz, margin_s = probe_song(segment.song), self.separator.rate_hz, self.separator.margin_s
        low_s = max(0.0, math.floor(segment.start_s - margin_s))  # whole seconds: the same cut at either rate
        high_s = min(info.duration_s, segment.start_s + segment.duration_s + margin_s)
        start, stop = round(low_s * info.rate_hz), round(high_s * info.rate_hz)
        stretch = read_stretch(Path(segment.song.mixture), info.rate_hz, start, stop)
        mixture = resample(to_stereo(stretch), info.rate_hz, rate_hz)
        stems = self.separator.separate(mixture, first=round(low_s * rate_hz))
        first, length = round((segment.start_s - low_s) * rate_hz), round(segment.duration_s * rate_hz)
        return Audio(np.ascontiguousarray(stems.vocals[:, first : first + length]), rate_hz)

    def mono(self, clip: MusicClip) -> Samples:
        """A clip's separated vocal, mono at the semantic rate and as long as the clean one."""
        audio = self.read(clip.segment)
        samples = resample(audio.mono().samples[0], audio.rate_hz, clip.semantic_hz)
        return with_length(samples, len(clip.sound.vocal))
