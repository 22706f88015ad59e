"""Results on disk: each clip of each system is generated once, and a stopped evaluation continues.

A system's folder is named after its identity, so that other weights, seeds or sampling never meet in one folder.
``index.json`` lists every segment with its file, computing time, failure and note; it is written after each batch,
whole or not at all. A segment whose length or song files changed is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hafm_lightning.audio import Audio, Samples, read_audio, write_audio
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.segments import Segment, SelectedClips, clip_file_stem
from hafm_lightning.evaluation.systems.base import Outcome, System, play_segments
from hafm_lightning.files import sha256_of, write_json
from hafm_lightning.processes.pool import LocalPool, SerialPool
from hafm_lightning.progress import progress
from hafm_lightning.sealing import note_without_digest
from hafm_lightning.untrusted import checked, child, read_json

INDEX_FILE = "index.json"
ADVICE = "delete the folder to make it again"


@dataclass(frozen=True)
class Entry:
    """One clip in the index: its wav file (32-bit float, so that nothing is clipped or rounded), and its outcome.

    Attributes:
        together: Clips of a batch, which decides what ``seconds`` means; 0 in older folders.
        processes: Processes that generated at the same time, which also changes ``seconds``.
        sha256: Of the wav file's bytes; empty in older folders.
    """

    file: str
    seconds: float | None
    failure: str
    note: str
    together: int = 0
    processes: int = 1
    sha256: str = ""


@dataclass(frozen=True)
class _Index:
    """The content of ``index.json``."""

    system: str
    identity: str
    facts: dict[str, Any]
    clips: dict[str, Entry]
    peak_memory_mib: float | None


class Generations:
    """What one system played, by segment, in a folder of the protocol's folder ``root``."""

    def __init__(self, root: Path, system: System) -> None:
        self.root, self.system = root, system
        self.key = f"{system.name}-{system.identity[:12]}"
        self.folder = root / "generations" / self.key
        self.entries: dict[str, Entry] = {}
        self.peak_memory_mib: float | None = None
        index = self.folder / INDEX_FILE
        if index.is_file():
            content = read_json(index, what="the index of generations", advice=ADVICE)
            stored = checked(content, _Index, index, ADVICE)
            self.entries, self.peak_memory_mib = stored.clips, stored.peak_memory_mib
            if any(not entry.sha256 for entry in self.entries.values()):
                note_without_digest(index)

    def missing(self, segments: Sequence[Segment]) -> list[Segment]:
        """Segments without a result, or whose song changed."""
        return [it for it in segments if it.key not in self.entries or not self.file(it).is_file()]

    def file(self, segment: Segment) -> Path:
        """The wav file of a segment."""
        return child(self.folder, self.entries[segment.key].file, "a clip in the index of generations")

    def samples(self, segment: Segment) -> Samples:
        """What the system played for a segment, mono ``[L]``; RequestError if the file changed since."""
        path, sha256 = self.file(segment), self.entries[segment.key].sha256
        if sha256 and sha256_of(path) != sha256:
            raise RequestError(f"{path}: the file was changed or damaged since it was generated (sha256); {ADVICE}")
        samples: Samples = read_audio(self.file(segment)).samples[0]
        return samples

    def outcome(self, segment: Segment) -> Outcome:
        """The same with computing time, failure and note."""
        entry = self.entries[segment.key]
        return Outcome(self.samples(segment), entry.seconds, entry.failure, entry.note)

    def make(self, clips: SelectedClips, batch_clips: int, pool: LocalPool) -> None:
        """Play the missing segments, ``batch_clips`` at a time, in the pool's processes where the system can."""
        todo = self.missing(clips.segments)
        batches = [todo[start : start + batch_clips] for start in range(0, len(todo), batch_clips)]
        pool = pool if self.system.parallel else SerialPool()
        read = clips.load if pool.processes == 1 else clips.reader
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        title, total = f"{self.root.name}: {self.system.label}", len(clips.segments)
        with progress(title, total, unit="clips", done=total - len(todo)) as bar:
            for index, (outcomes, memory_mib) in pool.map(partial(play_segments, self.system, read), batches):
                for segment, outcome in zip(batches[index], outcomes, strict=True):
                    name = f"{clip_file_stem(segment.key)}.wav"
                    write_audio(self.folder / name, Audio(outcome.samples[None], clips.rate_hz), subtype="FLOAT")
                    facts = (outcome.seconds, outcome.failure, outcome.note)
                    sha256 = sha256_of(self.folder / name)
                    self.entries[segment.key] = Entry(name, *facts, batch_clips, pool.processes, sha256)
                if memory_mib is not None:
                    self.peak_memory_mib = max(memory_mib, self.peak_memory_mib or 0.0)
                self._write()
                bar.advance(len(batches[index]))

    def _write(self) -> None:
        content = {
            "system": self.system.name,
            "identity": self.system.identity,
            "facts": self.system.facts,
            "peak_memory_mib": self.peak_memory_mib,
            "clips": {clip: asdict(entry) for clip, entry in sorted(self.entries.items())},
        }
        write_json(self.folder / INDEX_FILE, content)
