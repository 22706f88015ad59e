"""Preparation from end to end: corpora in, tokenizers, shards, log and report out.

``<root>/`` holds ``tokenizers/``, ``train/ validation/ test/`` (shards and a manifest each), ``clips.csv`` (every clip
and why it was dropped), ``quarantine.csv``, ``report.html``, ``report.json``, and ``work/`` (state of a stopped run).

One process writes, and holds a lock while it does; workers only compute. Each step writes its result before the next
begins, and a run that is started again makes the missing shards. A shard depends on its plan alone, so an interrupted
run ends with the same bytes as an uninterrupted one. A wrong request is refused before anything is written.
"""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hafm_lightning.audio import RESAMPLER
from hafm_lightning.errors import RequestError
from hafm_lightning.files import remove_unfinished
from hafm_lightning.preparation.cap import capped
from hafm_lightning.preparation.configuration import PreparationConfig, read_config
from hafm_lightning.preparation.engine import make_engine
from hafm_lightning.preparation.plan import Plan, make_plan
from hafm_lightning.preparation.report.cautions import add_separation
from hafm_lightning.preparation.report.report import PreparationReport, write_report
from hafm_lightning.preparation.run_state import RootState
from hafm_lightning.preparation.shard_work import ShardWork, TokenizerLoader, cached_separator, cached_tokenizers
from hafm_lightning.preparation.survey import SONGS_PER_BLOCK, SurveyWork
from hafm_lightning.preparation.tokenizer_training import TrainingSounds, make_tokenizers
from hafm_lightning.processes.locks import LOCK_NAME, held
from hafm_lightning.processes.pool import Pool
from hafm_lightning.progress import progress
from hafm_lightning.shards import SPLITS, STORED_STREAMS, Manifest, ShardInfo, stream_description
from hafm_lightning.songs import list_songs
from hafm_lightning.songs.song import Listing, Song
from hafm_lightning.tokenizers import Tokenizers, load_tokenizers
from hafm_lightning.tokens import STYLE, VOCAL_ACOUSTIC

__all__ = ["PreparationConfig", "PreparationReport", "prepare", "read_config"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def prepare(config: PreparationConfig, load: TokenizerLoader = load_tokenizers) -> PreparationReport:
    """Prepare a corpus, or continue where an earlier run stopped; returns the report.

    ``load`` reads the tokenizers in every worker. RequestError for a missing folder, a root of other settings, no
    usable song, or another process in this root; RuntimeError if the disk is full or a worker died, and the same
    command continues.
    """
    state = RootState(Path(config.root).expanduser())
    try:
        with held(state.work / LOCK_NAME, f"{state.root}", "wait for it, or choose another root") as lock:
            try:
                return _Run(config, state, load).all_steps()
            except RequestError:
                if not state.begun:  # no trace remains
                    lock.release(erase=True)
                    with suppress(OSError):
                        state.work.rmdir()
                        state.root.rmdir()
                raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise RuntimeError(
                f"no space left below {state.root} ({error.strerror}); no unfinished file was left behind: "
                "free space and start again to continue"
            ) from error
        raise


class _Run:
    """One run of :func:`prepare`, step by step."""

    def __init__(self, config: PreparationConfig, state: RootState, load: TokenizerLoader) -> None:
        self.config = config
        self.state = state
        self.load = load
        self.device = config.resolved_device()
        self.worker_device = config.worker_device()

    def all_steps(self) -> PreparationReport:
        """All steps in order."""
        config, state = self.config, self.state
        state.check_settings(config.deciding())
        listing = self._listing()
        state.begin(config.deciding(), listing.songs)
        remove_unfinished(state.root)
        with make_engine(config.engine) as pool:
            plan = self._plan(listing, pool)
            self._make_tokenizers(plan, pool)
            cached_tokenizers.cache_clear()  # an earlier run of this process may have had another root at this path
            tokenizers = cached_tokenizers(self.load, state.tokenizers, self.device)
            styles = plan.style_names() if config.styles else []
            records = self._make_shards(plan, styles, pool)
        manifests = self._write_manifests(plan, records, tokenizers, styles)
        examples = config.report.examples
        return write_report(state, plan, listing, records, manifests, tokenizers, sound=config.sound, examples=examples)

    def _listing(self) -> Listing:
        """The songs; refuses every wrong request that can be found before the work begins."""
        config = self.config
        listing = list_songs(config.corpora)
        if not listing.songs:
            paths = ", ".join(corpus.path for corpus in config.corpora)
            raise RequestError(f"no songs in {paths}\ncheck `corpora` (kind, path, genres, licences)")
        unseparated = next((song for song in listing.songs if song.needs_separation), None)
        if unseparated is not None:
            if not config.separation.model:
                raise RequestError(
                    f"{unseparated.mixture} is a mixture and no separation model is set\n"
                    "give an MDX-Net model as separation.model, or use a corpus of stems"
                )
            separator = cached_separator(config.separation)
            runtime = separator.runtime
            why = f" ({runtime.note})" if runtime.note else ""
            print(f"separation: {separator.identity['kind']} on {runtime.provider}{why}", file=sys.stderr)
        unknown = sorted(set(config.split.validation_songs) - {song.id for song in listing.songs})
        if unknown:
            raise RequestError(f"split.validation_songs names {unknown[0]!r}, which is in no corpus\ncorrect the name")
        if config.tokenizers.folder:
            self.load(Path(config.tokenizers.folder).expanduser(), "cpu")
        return listing

    def _plan(self, listing: Listing, pool: Pool) -> Plan:
        if plan := self.state.read_plan():
            return plan
        self._survey(listing.songs, pool)
        plan = make_plan(
            listing.songs,
            self.state.facts(),
            clips=self.config.clips,
            split=self.config.split,
            duplicates=self.config.duplicates,
            clips_per_shard=self.config.clips_per_shard,
        )
        if not plan.units:
            first = (plan.quarantined + plan.left_out)[0]
            problem = f"the first: {first.name}: {first.reason}"
            raise RequestError(f"none of {len(listing.songs)} songs can be used; {problem}")
        self.state.write_plan(plan)
        return plan

    def _survey(self, songs: list[Song], pool: Pool) -> None:
        blocks = [tuple(songs[i : i + SONGS_PER_BLOCK]) for i in range(0, len(songs), SONGS_PER_BLOCK)]
        left = [number for number in range(len(blocks)) if not self.state.survey_block(number).is_file()]
        units = [blocks[number] for number in left]
        done = len(songs) - sum(map(len, units))
        with progress("Surveying the songs", len(songs), "songs", done) as bar:
            for index, facts in pool.map(SurveyWork(self.config.duplicates.enabled), units):
                self.state.write_survey_block(left[index], facts)
                bar.advance(len(facts))

    def _make_tokenizers(self, plan: Plan, pool: Pool) -> None:
        durations_s = {fact.id: fact.duration_s for fact in self.state.facts()}
        songs = plan.songs("train") or [song for unit in plan.units for song in unit.songs]
        sounds = TrainingSounds(songs, durations_s, self.config.tokenizers, self.config.sound, pool)
        make_tokenizers(self.config.tokenizers, self.state.tokenizers, sounds, self.load, self.device)

    def _make_shards(self, plan: Plan, styles: list[str], pool: Pool) -> list[dict[str, Any]]:
        """Make the missing shards; the records of all units, in order."""
        work = ShardWork(
            sound=self.config.sound,
            tokenizers=self.state.tokenizers,
            load=self.load,
            batch_size=self.config.batch_size,
            vocal_acoustic=self.config.vocal_acoustic,
            styles={name: number for number, name in enumerate(styles)} if styles else None,
            device=self.worker_device,
        )
        records = {unit: record for unit in plan.units if (record := self.state.finished(unit)) is not None}
        left = [unit for unit in plan.units if unit not in records]
        songs = sum(record["songs"] for record in records.values())
        clips = sum(record["shard"]["clips"] for record in records.values() if record["shard"])
        done_h = sum(unit.duration_s for unit in records) / 3600
        with progress("Tokenizing", plan.duration_s / 3600, "hours of audio", done_h) as bar:
            for index, result in pool.map(work, left):
                unit = left[index]
                records[unit] = record = self.state.write_unit(unit, result, self.config.clips.duration_s)
                if result.separation:
                    add_separation(self.state.work, result.separation)
                songs += record["songs"]
                clips += record["shard"]["clips"] if record["shard"] else 0
                bar.advance(unit.duration_s / 3600, f"{songs} songs, {clips} clips")
        return [records[unit] for unit in plan.units]

    def _write_manifests(
        self, plan: Plan, records: list[dict[str, Any]], tokenizers: Tokenizers, styles: list[str]
    ) -> dict[str, Manifest]:
        """One manifest for each split with planned songs."""
        names = ("clips", "filters", "separation", "noise_sigma", "seed", "split")
        settings = {name: value for name, value in self.config.deciding().items() if name in names}
        absent = {STYLE.name: not styles, VOCAL_ACOUSTIC.name: not self.config.vocal_acoustic}
        manifests = {}
        for split in (split for split in SPLITS if plan.songs(split)):
            made = [ShardInfo(**record["shard"]) for record in records if record["split"] == split and record["shard"]]
            cap, folder = self.config.split.cap(split), self.state.root / split
            manifests[split] = Manifest(
                split=split,
                duration_s=self.config.clips.duration_s,
                streams={n: stream_description(s) for n, s in STORED_STREAMS.items() if not absent.get(n)},
                tokenizers=tokenizers.identities(),
                resampler=RESAMPLER,
                preparation=settings,
                styles=styles,
                shards=capped(made, folder, cap, self.config.split.seed, self.config.clips.duration_s),
            )
            manifests[split].save(folder)
        return manifests
