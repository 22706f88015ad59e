"""The state of a root between runs, in ``<root>/work``: settings, songs, survey, plan, and a record of every shard.

Each file is written atomically, when its step is complete, so the files alone show the next run what is left to do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hafm_lightning.errors import RequestError
from hafm_lightning.files import sha256_of, write_json
from hafm_lightning.preparation.plan import Plan, Unit
from hafm_lightning.preparation.shard_work import ClipEntry, UnitResult
from hafm_lightning.preparation.survey import SongFacts
from hafm_lightning.shards import SPLITS, ShardInfo, write_shard
from hafm_lightning.songs.song import Quarantined, Song
from hafm_lightning.untrusted import checked, child, read_json

ADVICE = "remove that file to do its step again, or prepare into another root"


class RootState:
    """The files of one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.tokenizers = root / "tokenizers"
        self._settings = self.work / "settings.json"
        self._songs = self.work / "songs.json"
        self._plan = self.work / "plan.json"

    @property
    def begun(self) -> bool:
        """True if a run has begun in this root."""
        return self._settings.is_file()

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Compare with the settings of the run that began here.

        Before the first shard is finished they may change: the steps that depend on them start over. Afterwards, or if
        the earlier settings are unknown, a change is a RequestError.
        """
        if not self.begun:
            old = [split for split in SPLITS if any((self.root / split).glob("shard-*"))]
            if old:
                raise RequestError(
                    f"{self.root / old[0]} holds shards, but {self._settings} is missing, so they cannot be continued\n"
                    "choose another root, or remove that folder"
                )
            return
        before, now = _flat(_read_object(self._settings, "the settings of a preparation")), _flat(settings)
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if not changed:
            return
        key = changed[0]
        if any((self.work / "records").glob("*.json")):
            if "filters.rules" in changed:
                raise RequestError(
                    f"{self.root} holds shards that an earlier version of the quality filter chose\n"
                    "they can be used, but not continued: choose another root, or remove that folder"
                )
            raise RequestError(
                f"{self.root} holds shards made with {key} = {before.get(key)!r}, now it is {now.get(key)!r}\n"
                "set it back to continue, or choose another root"
            )
        if any(name.startswith(("corpora", "duplicates")) for name in changed):
            shutil.rmtree(self.work / "survey", ignore_errors=True)
            self._songs.unlink(missing_ok=True)
        self._plan.unlink(missing_ok=True)
        for use in ("semantic", "acoustic"):
            shutil.rmtree(self.tokenizers / use, ignore_errors=True)
        self._settings.unlink()

    def begin(self, settings: dict[str, Any], songs: list[Song]) -> None:
        """Write settings and songs; RequestError if the songs are not those of the run that began here."""
        content = {song.id: [song.split, song.bytes] for song in songs}
        if self._songs.is_file():
            before = _read_object(self._songs, "the songs of a preparation")
            changed = sorted(name for name in before.keys() | content.keys() if before.get(name) != content.get(name))
            if changed:
                raise RequestError(
                    f"{len(changed)} songs were added, removed or changed since {self.root} was planned "
                    f"(first: {changed[0]!r})\nprepare into another root, or put the corpus back as it was"
                )
        else:
            write_json(self._songs, content)
        if not self.begun:
            write_json(self._settings, settings)

    def survey_block(self, number: int) -> Path:
        """File of a block of the survey."""
        return self.work / "survey" / f"block-{number:05d}.json"

    def write_survey_block(self, number: int, facts: list[SongFacts]) -> None:
        """Write the facts of one block."""
        write_json(self.survey_block(number), {"facts": list(map(asdict, facts))})

    def facts(self) -> Iterator[SongFacts]:
        """Facts of all songs, in order."""
        for path in sorted((self.work / "survey").glob("block-*.json")):
            yield from checked(_read_object(path, "a part of the survey"), _Facts, path, ADVICE).facts

    def read_plan(self) -> Plan | None:
        """The plan, or None before it is made."""
        if not self._plan.exists():
            return None
        plan = checked(_read_object(self._plan, "the plan"), Plan, self._plan, ADVICE)
        if problem := plan.problem():
            raise RequestError(f"{self._plan} is damaged ({problem}); {ADVICE}")
        return plan

    def write_plan(self, plan: Plan) -> None:
        """Write the plan."""
        write_json(self._plan, asdict(plan))

    def record_path(self, unit: Unit) -> Path:
        """File of a unit's record."""
        return child(self.work / "records", f"{unit.split}-{unit.number:05d}.json", "a shard in the plan")

    def shard_path(self, unit: Unit) -> Path:
        """File of a unit's shard."""
        return child(child(self.root, unit.split, "a split in the plan"), unit.file, "a shard in the plan")

    def finished(self, unit: Unit) -> dict[str, Any] | None:
        """The record, without its log, of a unit whose shard has the recorded bytes; None otherwise."""
        path = self.record_path(unit)
        if not path.is_file():
            return None
        record = self._record(unit)
        shard = self.shard_path(unit)
        if record["shard"] and not (shard.is_file() and sha256_of(shard) == record["shard"]["sha256"]):
            return None
        return _without_log(record)

    def write_unit(self, unit: Unit, result: UnitResult, duration_s: float) -> dict[str, Any]:
        """Write a finished unit: first the shard, then the record, which marks it as finished and is returned.

        ``duration_s`` is the length of the clips; the returned record has no log.
        """
        shard = None
        if result.clip_ids:
            path = self.shard_path(unit)
            shard = asdict(write_shard(path, result.arrays, result.clip_ids, duration_s))
        record = {"split": unit.split, "songs": result.songs, "duration_s": round(result.duration_s, 6), "shard": shard}
        record |= {"quarantined": list(map(asdict, result.quarantined)), "entries": list(map(asdict, result.entries))}
        write_json(self.record_path(unit), record)
        return _without_log(record)

    def log(self, unit: Unit) -> list[dict[str, Any]]:
        """The log of a finished unit: one entry for each clip, also for dropped ones."""
        return list(self._record(unit)["entries"])

    def _record(self, unit: Unit) -> dict[str, Any]:
        path = self.record_path(unit)
        content = _read_object(path, "the record of a shard")
        record = checked(content, _Record, path, ADVICE, unknown="ignore")
        if record.shard is not None:
            problem = record.shard.problem()
            if problem or record.shard.file != unit.file or record.split != unit.split:
                raise RequestError(f"{path} is damaged (its shard is {record.shard.file!r:.60}: {problem}); {ADVICE}")
        return content


@dataclass(frozen=True)
class _Facts:
    """A block of the survey."""

    facts: list[SongFacts]


@dataclass(frozen=True)
class _Record:
    """The record of a shard."""

    split: str
    songs: int
    duration_s: float
    shard: ShardInfo | None
    quarantined: list[Quarantined]
    entries: list[ClipEntry]


def _read_object(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path, what=what, advice=ADVICE)
    if not isinstance(content, dict):
        raise RequestError(f"{path}: {what} is damaged (no JSON object); {ADVICE}")
    return content


def _without_log(record: dict[str, Any]) -> dict[str, Any]:
    """A record to keep in memory: the logs of millions of clips stay on the disk."""
    return {key: value for key, value in record.items() if key != "entries"}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys."""
    if not isinstance(value, dict | list):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, item in items for name, leaf in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
