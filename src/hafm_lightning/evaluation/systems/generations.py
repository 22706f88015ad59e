"""Generations on disk: each clip of each system is made once, and a stopped evaluation continues where it was.

A system's folder is named after its identity, so that other weights, seeds or sampling never meet in one folder.
``index.json`` lists every segment with its file, computing time, failure and note; it is written after each batch,
whole or not at all. A segment whose length or song files changed is made again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import MusicClip, Segment
from hafm_lightning.evaluation.stage.material import clip_file_stem
from hafm_lightning.evaluation.systems.base import Outcome, Samples, System
from hafm_lightning.files import write_json

INDEX_FILE = "index.json"


@dataclass(frozen=True)
class Entry:
    """One clip in the index.

    Attributes:
        file: Name of its wav file (32-bit float, so that nothing is clipped or rounded).
        seconds: Computing time; None where nothing was computed.
        failure: Why it is silence; empty if it is not.
        note: Where the sound comes from.
        together: Clips that were to be made at once, which decides what ``seconds`` means; 0 in older folders.
    """

    file: str
    seconds: float | None
    failure: str
    note: str
    together: int = 0


class Generations:
    """What one system played, by segment.

    Args:
        root: Folder of the protocol.
        system: The system.
        rate_hz: Sample rate of the sounds.
    """

    def __init__(self, root: Path, system: System, rate_hz: int) -> None:
        self.system, self.rate_hz = system, rate_hz
        self.key = f"{system.name}-{system.identity[:12]}"
        self.folder = root / "generations" / self.key
        self.entries: dict[str, Entry] = {}
        self.peak_memory_mib: float | None = None
        index = self.folder / INDEX_FILE
        if index.is_file():
            try:
                content: Mapping[str, Any] = json.loads(index.read_text(encoding="utf-8"))
                self.entries = {clip: Entry(**entry) for clip, entry in content["clips"].items()}
                self.peak_memory_mib = content["peak_memory_mib"]
            except (ValueError, KeyError, TypeError) as error:
                raise RequestError(f"{index} is damaged ({error}); delete the folder to make it again") from error

    def missing(self, segments: Sequence[Segment]) -> list[Segment]:
        """Segments that are not there yet, or whose song changed."""
        return [segment for segment in segments if not self._has(segment)]

    def _has(self, segment: Segment) -> bool:
        entry = self.entries.get(segment.key)
        return entry is not None and (self.folder / entry.file).is_file()

    def make(
        self,
        segments: Sequence[Segment],
        load: Callable[[Segment], MusicClip],
        batch_clips: int,
        on_clips: Callable[[int], None],
    ) -> None:
        """Play the missing segments, ``batch_clips`` at a time."""
        todo = self.missing(segments)
        on_clips(len(segments) - len(todo))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for start in range(0, len(todo), batch_clips):
            part = todo[start : start + batch_clips]
            outcomes = self.system.play([load(segment) for segment in part])
            for segment, outcome in zip(part, outcomes, strict=True):
                file = f"{clip_file_stem(segment.key)}.wav"
                write_audio(self.folder / file, Audio(outcome.samples[None], self.rate_hz), subtype="FLOAT")
                self.entries[segment.key] = Entry(file, outcome.seconds, outcome.failure, outcome.note, batch_clips)
            if any(outcome.seconds is not None for outcome in outcomes):
                self.peak_memory_mib = peak_memory_mib()
            clips = {clip: asdict(entry) for clip, entry in sorted(self.entries.items())}
            self._write(clips)
            on_clips(len(part))

    def _write(self, clips: Mapping[str, Any]) -> None:
        content = {
            "system": self.system.name,
            "identity": self.system.identity,
            "facts": self.system.describe(),
            "peak_memory_mib": self.peak_memory_mib,
            "clips": clips,
        }
        write_json(self.folder / INDEX_FILE, content)

    def outcome(self, segment: Segment) -> Outcome:
        """What was played for a segment."""
        entry = self.entries[segment.key]
        samples: Samples = np.ascontiguousarray(read_audio(self.folder / entry.file).samples[0])
        return Outcome(samples, entry.seconds, entry.failure, entry.note)


def peak_memory_mib() -> float | None:
    """Peak memory so far, MiB: of the GPU's tensors where there is one, else of the whole process; None on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
