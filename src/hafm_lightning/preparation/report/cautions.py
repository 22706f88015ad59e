"""What a reader of the report should know before training: how separation ran, and stems that do not look right.

A model that writes the instrumental where vocals are expected swaps the stems of a whole corpus without an error.
Vocals have little sound below 100 Hz, where bass and bass drum are, and sing in most songs; both can be measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hafm_lightning.files import write_json
from hafm_lightning.untrusted import checked, read_json

_FILE = "separation.json"
_LOW_DB = 6.0  # the low end of the vocals above the accompaniment's by this much
_SILENT = 0.02  # share of active frames under which a stem is silent in a clip
_MOST = 0.9  # share of clips that makes a property one of the corpus


@dataclass(frozen=True)
class Separation:
    """How separation ran."""

    provider: str  # of onnxruntime, or the device of torch, of the last worker
    audio_s: float  # seconds of sound that were separated
    busy_s: float  # seconds that this took, of all workers together


def add_separation(work: Path, more: Mapping[str, Any]) -> None:
    """Add the time of a unit to the file in ``work``."""
    before = read_separation(work)
    total = Separation(
        provider=str(more["provider"]),
        audio_s=round((before.audio_s if before else 0.0) + more["audio_s"], 3),
        busy_s=round((before.busy_s if before else 0.0) + more["busy_s"], 3),
    )
    write_json(work / _FILE, asdict(total))


def read_separation(work: Path) -> Separation | None:
    """Time and provider of all units; None if nothing was separated."""
    path = work / _FILE
    if not path.is_file():
        return None
    advice = "delete it: it holds timings alone"
    return checked(read_json(path, what="the times of separation", advice=advice), Separation, path, advice)


def separation_line(separation: Separation) -> str:
    """Provider and speed, for the terminal and the page."""
    speed = separation.audio_s / separation.busy_s if separation.busy_s else 0.0
    return f"separation: {separation.provider}, {speed:.3g} s of audio a second in each worker"


@dataclass
class StemCounts:
    """Counts over all clips of the log. Logs of earlier versions have no low end and no bleed."""

    clips: int = 0
    singing: float = 0.0  # sum of the shares of frames with singing
    bleed: float = 0.0  # sum of the shares of frames that only the absolute gate takes for singing
    silent_vocals: int = 0
    silent_instrumentals: int = 0
    low_end: int = 0  # clips with sound below 100 Hz
    low_vocals: int = 0  # of these, clips whose vocals have far more of it
    cancelled: int = 0  # clips in which the channels of a stem cancel each other

    def add(self, measurements: Iterable[Mapping[str, float]]) -> None:
        """Count clips."""
        for measured in measurements:
            self.clips += 1
            vocals = measured.get("vocal_activity", 1.0)  # clips of other rules may not have it
            self.singing += vocals
            self.bleed += measured.get("vocal_bleed", 0.0)
            self.silent_vocals += vocals < _SILENT
            self.silent_instrumentals += measured.get("instrumental_activity", 1.0) < _SILENT
            low_end_db = measured.get("low_end_db", 0.0)
            self.low_end += low_end_db != 0
            self.low_vocals += low_end_db > _LOW_DB
            self.cancelled += measured.get("cancelled", 0.0) > 0

    def shares(self) -> dict[str, float]:
        """Mean shares of frames, for the report."""
        clips = max(1, self.clips)
        return {"singing": round(self.singing / clips, 4), "bleed": round(self.bleed / clips, 4)}

    def warnings(self) -> list[str]:
        """A line for each property of the corpus that is not that of vocals and their accompaniment."""
        found = []
        of_all = f"of {self.clips} clips"
        if self.low_vocals > self.low_end / 2:
            found.append(
                f"vocals and accompaniment may be swapped: in {self.low_vocals} {of_all} the vocals have more bass "
                "than the accompaniment; check the model's target, or the names of the stems, and hear the examples"
            )
        if self.clips and self.silent_vocals >= _MOST * self.clips:
            found.append(f"the vocals are silent in {self.silent_vocals} {of_all}; check the separation or the songs")
        if self.clips and self.silent_instrumentals >= _MOST * self.clips:
            silent = self.silent_instrumentals
            found.append(f"the accompaniment is silent in {silent} {of_all}; check the separation or the songs")
        if self.cancelled:
            found.append(
                f"in {self.cancelled} {of_all} the channels of a stem cancel each other (opposite polarity): "
                "one channel was used alone; see `cancelled` in clips.csv"
            )
        return found
