"""Preparation from end to end: corpora in, tokenizers, shards, log and report out.

``<root>/`` holds ``tokenizers/``, ``train/ validation/ test/`` (shards and a manifest each), ``clips.csv`` (every clip
and why it was dropped), ``quarantine.csv``, ``report.html``, ``report.json``, and ``work/`` (what a stopped run needs
to continue).

Choices:

* One process writes, and holds a lock while it does. Workers only compute.
* Steps: list the songs, survey them, plan the shards, make the tokenizers, make the shards, write manifests and report.
  Each keeps its result before the next begins. A shard is finished when its record is there and its bytes have the
  recorded sha256; a run that is started again makes the others. Since a shard depends on its plan alone, an interrupted
  run ends with the same bytes as an uninterrupted one.
* A root belongs to one set of settings and songs. Others are refused by name rather than mixed in.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.errors import RequestError
from hafm_lightning.preparation.clips import ClipSettings, clip_starts
from hafm_lightning.preparation.corpora import AnyCorpus, Listing, Song, list_songs
from hafm_lightning.preparation.engines import Engine, EngineSettings, make_engine
from hafm_lightning.preparation.files import TEMPORARY_PREFIX, sha256_of, write_json
from hafm_lightning.preparation.filters import FilterSettings
from hafm_lightning.preparation.fingerprint import DuplicateSettings
from hafm_lightning.preparation.lock import exclusive
from hafm_lightning.preparation.plan import Plan, SplitSettings, Unit, make_plan
from hafm_lightning.preparation.report import PreparationReport, write_report
from hafm_lightning.preparation.separation import SeparationSettings
from hafm_lightning.preparation.settings import as_plain, build, read_yaml
from hafm_lightning.preparation.shards import (
    SPLITS,
    STORED_STREAMS,
    Manifest,
    ShardInfo,
    stream_description,
    write_shard,
)
from hafm_lightning.preparation.survey import SONGS_PER_BLOCK, SongFacts, SurveyWork
from hafm_lightning.preparation.training import Excerpt, TokenizerSettings, make_tokenizers
from hafm_lightning.preparation.work import (
    UNKNOWN_STYLE,
    ShardWork,
    SoundSettings,
    TokenizerLoader,
    UnitResult,
    load_prepared,
)
from hafm_lightning.progress import progress
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import STYLE

WORK_FOLDER = "work"


@dataclass(frozen=True)
class ReportSettings:
    """The run report.

    Attributes:
        examples: Clips that can be listened to in the report, original beside decoded tokens.
    """

    examples: int = 10


@dataclass(frozen=True)
class PreparationConfig:
    """Everything that ``prepare.yaml`` says.

    Attributes:
        root: Output folder.
        corpora: Where songs come from; each names its ``kind``.
        clips: How songs are cut.
        split: How songs are divided between train and validation.
        filters: Which clips are dropped.
        duplicates: Whether recordings that occur twice are left out.
        separation: How mixtures are separated.
        tokenizers: Which tokenizers.
        noise_sigma: Standard deviation of the noise on vocals before the semantic tokenizer; full scale is 1.
        seed: Of that noise.
        vocal_acoustic: Also store the acoustic codes of vocals (section 3.2 of the paper; half as much space again).
        styles: Also store each clip's genre as a style.
        clips_per_shard: Clips that a shard holds about, before the filter. A stopped run repeats the shards that it was
            working on.
        batch_size: Clips that are given to a tokenizer together.
        device: Where tokenizers and separation run: ``cpu``, ``cuda`` or ``auto``.
        engine: Where the work runs.
        report: What the report holds.
    """

    root: str
    corpora: tuple[AnyCorpus, ...]
    clips: ClipSettings = field(default_factory=ClipSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    filters: FilterSettings = field(default_factory=FilterSettings)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    separation: SeparationSettings = field(default_factory=SeparationSettings)
    tokenizers: TokenizerSettings = field(default_factory=TokenizerSettings)
    noise_sigma: float = 0.01
    seed: int = 0
    vocal_acoustic: bool = False
    styles: bool = False
    clips_per_shard: int = 512
    batch_size: int = 8
    device: str = "auto"
    engine: EngineSettings = field(default_factory=EngineSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("corpora is empty; name at least one, with its kind and path")
        if self.clips_per_shard < 1 or self.batch_size < 1 or not self.noise_sigma >= 0:
            raise ValueError("clips_per_shard and batch_size start at 1, noise_sigma at 0")
        if self.device not in ("cpu", "cuda", "auto"):
            raise ValueError(f"device is {self.device!r}, choose cpu, cuda or auto")


_CHANGES_NOTHING = ("root", "engine", "report", "device")
"""Settings that do not decide the bytes of shards."""


def read_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> PreparationConfig:
    """Settings from a YAML file and ``key=value`` overrides; RequestError names the key that is wrong."""
    return build(PreparationConfig, read_yaml(Path(path), overrides), "")


def prepare(config: PreparationConfig, load: TokenizerLoader = load_prepared) -> PreparationReport:
    """Do all of it, or continue where a stopped run was.

    Args:
        config: What to do.
        load: Reads the tokenizers from a folder onto a device, in every worker.

    Returns:
        Counts, durations and what was put aside; also written to ``report.json``.

    Raises:
        RequestError: The request cannot be served: a missing folder, a root of other settings, no usable song, another
            process at work in the root.
        RuntimeError: The work failed: the disk is full, a worker died. Starting again continues.
    """
    root = Path(config.root).expanduser()
    try:
        with exclusive(root / WORK_FOLDER / "lock"):
            return _Run(config, root, load).all_steps()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RuntimeError(
                f"no space left below {root} ({error.strerror}); no unfinished file was left behind: "
                "free space and start again to continue"
            ) from error
        raise


class _Run:
    """One run of :func:`prepare`: the steps, and the files between them."""

    def __init__(self, config: PreparationConfig, root: Path, load: TokenizerLoader) -> None:
        self.config = config
        self.root = root
        self.work = root / WORK_FOLDER
        self.load = load
        self.device = resolve_device(config)
        self.sound = SoundSettings(config.clips, config.filters, config.separation, config.noise_sigma, config.seed)

    def all_steps(self) -> PreparationReport:
        """Everything, in order."""
        self._check_settings()
        self._sweep()
        listing = self._listing()
        with make_engine(self.config.engine) as engine:
            plan = self._plan(listing, engine)
            self._make_tokenizers(plan, engine)
            tokenizers = self.load(self.root / "tokenizers", self.device)
            styles = style_names(plan) if self.config.styles else []
            records = self._make_shards(plan, styles, engine)
        manifests = self._write_manifests(plan, records, tokenizers, styles)
        return write_report(
            self.root,
            plan=plan,
            listing=listing,
            records=records,
            manifests=manifests,
            tokenizers=tokenizers,
            sound=self.sound,
            examples=self.config.report.examples,
        )

    def _check_settings(self) -> None:
        """Refuse a root that was prepared with other settings."""
        path = self.work / "settings.json"
        content = {
            item.name: as_plain(getattr(self.config, item.name))
            for item in fields(self.config)
            if item.name not in _CHANGES_NOTHING
        }
        if path.is_file():
            _refuse_changes(self.root, json.loads(path.read_bytes()), content)
            return
        old = [split for split in SPLITS if any((self.root / split).glob("shard-*"))]
        if old:
            raise RequestError(
                f"{self.root / old[0]} holds shards, but {path} is missing, so they cannot be continued\n"
                "choose another root, or remove that folder"
            )
        write_json(path, content)

    def _sweep(self) -> None:
        """Remove the unfinished files of a killed run."""
        for path in self.root.rglob(f"{TEMPORARY_PREFIX}*"):
            path.unlink(missing_ok=True)

    def _listing(self) -> Listing:
        listing = list_songs(self.config.corpora)
        if not listing.songs:
            paths = ", ".join(corpus.path for corpus in self.config.corpora)
            raise RequestError(f"no songs in {paths}\ncheck `corpora` (kind, path, genres, licences)")
        unsplit = next((song for song in listing.songs if song.needs_separation), None)
        if unsplit is not None and not self.config.separation.model:
            raise RequestError(
                f"{unsplit.mixture} is a mixture and no separation model is set\n"
                "give an MDX-Net model as separation.model, or use a corpus of stems"
            )
        content = {song.id: [song.split, song.bytes] for song in listing.songs}
        path = self.work / "songs.json"
        if path.is_file():
            before = json.loads(path.read_bytes())
            changed = sorted(name for name in before.keys() | content.keys() if before.get(name) != content.get(name))
            if changed:
                raise RequestError(
                    f"{len(changed)} songs were added, removed or changed since {self.root} was planned "
                    f"(first: {changed[0]!r})\nprepare into another root, or put the corpus back as it was"
                )
        else:
            write_json(path, content)
        return listing

    def _plan(self, listing: Listing, engine: Engine) -> Plan:
        path = self.work / "plan.json"
        if path.is_file():
            return Plan.from_dict(json.loads(path.read_bytes()))
        facts = self._survey(listing.songs, engine)
        try:
            plan = make_plan(
                listing.songs,
                facts,
                clips=self.config.clips,
                split=self.config.split,
                duplicates=self.config.duplicates,
                clips_per_shard=self.config.clips_per_shard,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error
        if not plan.units:
            first = (plan.quarantined + plan.left_out)[0]
            raise RequestError(
                f"none of {len(listing.songs)} songs can be used; the first: {first.name}: {first.reason}"
            )
        write_json(path, plan.as_dict())
        return plan

    def _survey(self, songs: list[Song], engine: Engine) -> list[SongFacts]:
        blocks = [tuple(songs[i : i + SONGS_PER_BLOCK]) for i in range(0, len(songs), SONGS_PER_BLOCK)]
        paths = [self.work / "survey" / f"block-{number:05d}.json" for number in range(len(blocks))]
        open_blocks = [number for number, path in enumerate(paths) if not path.is_file()]
        work = SurveyWork(self.config.duplicates.enabled)
        with progress("Surveying the songs", len(songs), "songs") as bar:
            bar.advance(sum(len(block) for number, block in enumerate(blocks) if number not in set(open_blocks)))
            for index, facts in engine.map(work, [blocks[number] for number in open_blocks]):
                number = open_blocks[index]
                write_json(paths[number], {"facts": [asdict(fact) for fact in facts]})
                bar.advance(len(facts))
        return [SongFacts(**fact) for path in paths for fact in json.loads(path.read_bytes())["facts"]]

    def _make_tokenizers(self, plan: Plan, engine: Engine) -> None:
        facts: dict[str, float] = {}
        for path in sorted((self.work / "survey").glob("block-*.json")):
            facts |= {fact["id"]: fact["duration_s"] for fact in json.loads(path.read_bytes())["facts"]}
        excerpts = [
            Excerpt(song, start_s)
            for song in plan.songs("train")
            for start_s in clip_starts(facts[song.id], self.config.clips)
        ]
        make_tokenizers(
            self.config.tokenizers,
            self.root / "tokenizers",
            excerpts,
            sound=self.sound,
            engine=engine,
            load=self.load,
            device=self.device,
        )

    def _make_shards(self, plan: Plan, styles: list[str], engine: Engine) -> dict[str, dict[str, Any]]:
        """Records of all units, by ``split/number``; makes what is missing."""
        work = ShardWork(
            sound=self.sound,
            tokenizers=self.root / "tokenizers",
            load=self.load,
            batch_size=self.config.batch_size,
            vocal_acoustic=self.config.vocal_acoustic,
            styles={name: number for number, name in enumerate(styles)} if styles else None,
            device=self.device,
        )
        records: dict[str, dict[str, Any]] = {}
        missing = []
        with progress("Tokenizing", round(plan.duration_s / 3600, 3), "hours of audio") as bar:
            counts = [0, 0]

            def done(unit: Unit, record: dict[str, Any]) -> None:
                records[record_name(unit)] = record
                counts[0] += record["songs"]
                counts[1] += record["shard"]["clips"] if record["shard"] else 0
                bar.advance(unit.duration_s / 3600, f"{counts[0]} songs, {counts[1]} clips")

            for unit in plan.units:
                record = self._finished(unit)
                if record is None:
                    missing.append(unit)
                else:
                    done(unit, record)
            for index, result in engine.map(work, missing):
                done(missing[index], self._keep(missing[index], result))
        return {record_name(unit): records[record_name(unit)] for unit in plan.units}

    def _finished(self, unit: Unit) -> dict[str, Any] | None:
        """The record of a unit that is complete, or None."""
        path = self.work / "records" / f"{record_name(unit)}.json"
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_bytes())
        shard = self.root / unit.split / unit.file
        if record["shard"] and not (shard.is_file() and sha256_of(shard) == record["shard"]["sha256"]):
            return None
        return record

    def _keep(self, unit: Unit, result: UnitResult) -> dict[str, Any]:
        """Write a finished unit: first the shard, then the record that declares it finished."""
        shard = None
        if result.clip_ids:
            path = self.root / unit.split / unit.file
            shard = write_shard(path, result.arrays, result.clip_ids, self.config.clips.duration_s)
        record = {
            "split": unit.split,
            "songs": result.songs,
            "duration_s": round(result.duration_s, 6),
            "shard": asdict(shard) if shard else None,
            "quarantined": [asdict(entry) for entry in result.quarantined],
            "entries": [asdict(entry) for entry in result.entries],
        }
        write_json(self.work / "records" / f"{record_name(unit)}.json", record)
        return record

    def _write_manifests(
        self, plan: Plan, records: dict[str, dict[str, Any]], tokenizers: Tokenizers, styles: list[str]
    ) -> dict[str, Manifest]:
        preparation = {
            item.name: as_plain(getattr(self.config, item.name))
            for item in fields(self.config)
            if item.name in ("clips", "filters", "separation", "noise_sigma", "seed", "split")
        }
        streams = {
            name: stream_description(stream)
            for name, stream in STORED_STREAMS.items()
            if (name != STYLE.name or styles) and (name != "vocal_acoustic" or self.config.vocal_acoustic)
        }
        manifests = {}
        for split in SPLITS:
            shards = [
                ShardInfo(**records[record_name(unit)]["shard"])
                for unit in plan.units
                if unit.split == split and records[record_name(unit)]["shard"]
            ]
            if not any(unit.split == split for unit in plan.units):
                continue
            manifests[split] = Manifest(
                split=split,
                duration_s=self.config.clips.duration_s,
                streams=streams,
                tokenizers=tokenizers.identities(),
                resampler=RESAMPLER,
                preparation=preparation,
                styles=styles,
                shards=shards,
            )
            manifests[split].save(self.root / split)
        return manifests


def record_name(unit: Unit) -> str:
    """Name of a unit's record."""
    return f"{unit.split}-{unit.number:05d}"


def style_names(plan: Plan) -> list[str]:
    """Genres of the planned songs, sorted; the first name stands for songs without one."""
    genres = {song.genre for unit in plan.units for song in unit.songs}
    names = [UNKNOWN_STYLE, *sorted(genres - {"", UNKNOWN_STYLE})]
    if len(names) > STYLE.vocabulary:
        raise RequestError(
            f"the corpora have {len(names)} genres, the style stream holds {STYLE.vocabulary}\n"
            "keep some of them by `genres`, or set styles: false"
        )
    return names


def resolve_device(config: PreparationConfig) -> str:
    """``cpu`` or ``cuda``; RequestError when a GPU is asked for and there is none."""
    import torch

    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise RequestError("device is cuda, but torch sees no GPU here; set device: cpu (or auto)")
    return "cuda" if available and config.device != "cpu" else "cpu"


def _refuse_changes(root: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [key for key in sorted(before.keys() | now.keys()) if _flat(before.get(key)) != _flat(now.get(key))]
    if not changed:
        return
    old, new = _flat(before.get(changed[0]), changed[0]), _flat(now.get(changed[0]), changed[0])
    key = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    raise RequestError(
        f"{root} was begun with {key} = {old.get(key)!r}, now it is {new.get(key)!r}\n"
        "set it back to continue, or choose another root"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
