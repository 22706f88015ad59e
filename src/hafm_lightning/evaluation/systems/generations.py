"""Results on disk: each clip of each system is generated and embedded once, and a stopped evaluation continues.

A system's folder is named after its identity, so that other weights, seeds or sampling never meet in one folder.
``index.json`` lists every segment with its file, computing time, failure and note; it is written after each batch,
whole or not at all. A segment whose length or song files changed is made again.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.audio import Audio, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import Segment, SelectedClips, clip_file_stem
from hafm_lightning.evaluation.systems.base import Outcome, Played, Samples, System, play_clips
from hafm_lightning.files import write_atomic, write_json
from hafm_lightning.processes.pool import LocalPool, SerialPool

Rows = npt.NDArray[np.float32]

INDEX_FILE = "index.json"


@dataclass(frozen=True)
class Entry:
    """One clip in the index.

    Attributes:
        file: Name of its wav file (32-bit float, so that nothing is clipped or rounded).
        seconds: Computing time; None where nothing was computed.
        failure: Why it is silence; empty if it is not.
        note: Where the sound comes from.
        together: Clips of a batch, which decides what ``seconds`` means; 0 in older folders.
        processes: Processes that generated at the same time, which also changes ``seconds``.
    """

    file: str
    seconds: float | None
    failure: str
    note: str
    together: int = 0
    processes: int = 1


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
        """Segments without a result, or whose song changed."""
        return [segment for segment in segments if not self._has(segment)]

    def _has(self, segment: Segment) -> bool:
        return segment.key in self.entries and self.file(segment).is_file()

    def file(self, segment: Segment) -> Path:
        """The wav file of a segment."""
        return self.folder / self.entries[segment.key].file

    def make(self, clips: SelectedClips, batch_clips: int, pool: LocalPool, on_clips: Callable[[int], None]) -> None:
        """Play the missing segments, ``batch_clips`` at a time, in the pool's processes where the system can."""
        todo = self.missing(clips.segments)
        on_clips(len(clips.segments) - len(todo))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        parts = [todo[start : start + batch_clips] for start in range(0, len(todo), batch_clips)]

        def play_here(part: Sequence[Segment]) -> Played:
            return play_clips(self.system, [clips.load(segment) for segment in part])

        remote = self.system.remote if pool.processes > 1 else None
        results = SerialPool().map(play_here, parts) if remote is None else pool.map(remote, parts)
        for index, played in results:
            processes = 1 if remote is None else pool.processes
            for segment, outcome in zip(parts[index], played.outcomes, strict=True):
                name = f"{clip_file_stem(segment.key)}.wav"
                write_audio(self.folder / name, Audio(outcome.samples[None], self.rate_hz), subtype="FLOAT")
                facts = (outcome.seconds, outcome.failure, outcome.note)
                self.entries[segment.key] = Entry(name, *facts, batch_clips, processes)
            if played.peak_memory_mib is not None:
                self.peak_memory_mib = max(played.peak_memory_mib, self.peak_memory_mib or 0.0)
            self._write()
            on_clips(len(parts[index]))

    def _write(self) -> None:
        content = {
            "system": self.system.name,
            "identity": self.system.identity,
            "facts": self.system.describe(),
            "peak_memory_mib": self.peak_memory_mib,
            "clips": {clip: asdict(entry) for clip, entry in sorted(self.entries.items())},
        }
        write_json(self.folder / INDEX_FILE, content)

    def outcome(self, segment: Segment) -> Outcome:
        """What the system played for a segment."""
        entry = self.entries[segment.key]
        samples: Samples = np.ascontiguousarray(read_audio(self.file(segment)).samples[0])
        return Outcome(samples, entry.seconds, entry.failure, entry.note)


class RowStore:
    """Embedding rows by segment key, in one ``.npz`` without pickles.

    Args:
        path: File; its name holds the identities of embedding and system.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Rows] = {}
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    names = json.loads(str(archive["clips"]))
                    self.rows = {name: archive[str(index)] for index, name in enumerate(names)}
            except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
                raise RequestError(f"{path} is damaged ({error}); delete it to compute it again") from error

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = io.BytesIO()
        arrays: dict[str, Any] = {str(index): rows for index, rows in enumerate(self.rows.values())}
        np.savez(content, clips=np.str_(json.dumps(list(self.rows))), **arrays)
        write_atomic(self.path, content.getvalue())
