"""One protocol: draw segments, let every system play them, measure, and fill a table of the card.

Everything expensive is kept under ``<output>/<protocol>/``: generations, embedding rows, clip scores. A stopped run
continues, and asking for one more metric or row computes that one only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hafm_lightning.audio import Audio, limit_peak, mix, write_audio
from hafm_lightning.evaluation.card.card import Column, Player, Row, Table, Value
from hafm_lightning.evaluation.card.checks import control_checks
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.intervals import bootstrap_interval
from hafm_lightning.evaluation.protocol.clip_scores import GROUPS, ClipScores
from hafm_lightning.evaluation.protocol.columns import clip_columns, clip_label, speed_columns
from hafm_lightning.evaluation.protocol.sets import AddCell, SetColumns
from hafm_lightning.evaluation.segments import MusicClip, Segment, load_clip, select_segments
from hafm_lightning.evaluation.settings import EvaluateSettings, ProtocolSettings
from hafm_lightning.evaluation.stage.material import clip_file_stem
from hafm_lightning.evaluation.systems.base import LABELS, System
from hafm_lightning.evaluation.systems.generations import Entry, Generations
from hafm_lightning.progress import progress
from hafm_lightning.tokenizers import Tokenizers

KEPT_CLIPS = 256
"""Clips whose sound stays in memory; more are read again when they are needed."""


class ProtocolRun:
    """One protocol of an evaluation.

    Args:
        settings: Of the whole evaluation.
        protocol: Which segments.
        tokenizers: The pair at whose rates clips are read.
        embeddings: What FAD, KD and APA are computed with.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        protocol: ProtocolSettings,
        tokenizers: Tokenizers,
        embeddings: Sequence[Embedding],
    ) -> None:
        self.settings, self.protocol, self.tokenizers = settings, protocol, tokenizers
        self.embeddings = list(embeddings)
        self.folder = Path(settings.output) / protocol.name
        self.selection = select_segments(protocol.segments(settings.root, settings.split))
        self.segments = self.selection.segments
        self.songs = [segment.song.id for segment in self.segments]
        self.rate_hz = tokenizers.acoustic.identity.sample_rate_hz
        self._clips: dict[str, MusicClip] = {}

    def load(self, segment: Segment) -> MusicClip:
        """A segment's sound."""
        if segment.key not in self._clips:
            if len(self._clips) >= KEPT_CLIPS:
                self._clips.pop(next(iter(self._clips)))
            self._clips[segment.key] = load_clip(segment, self.tokenizers)
        return self._clips[segment.key]

    def table(self, systems: Sequence[System]) -> Table:
        """Let the systems play, measure them, and fill the table."""
        played = {system.name: self._play(system) for system in systems}
        columns: list[Column] = []
        cells: dict[str, dict[str, Value]] = {name: {} for name in played}

        def add(column: Column, name: str, value: Value) -> None:
            if column not in columns:
                columns.append(column)
            cells[name][column.key] = value

        sets = [
            SetColumns(self.settings, self.protocol, self.folder, embedding, self.segments, self.load, self.rate_hz)
            for embedding in self.embeddings
            if {"fad", "kd", "apa"} & set(self.settings.metrics)
        ]
        for part in sets:
            part.fill(played, add)
        self._fill_clips(played, add)
        if "speed" in self.settings.metrics:
            self._fill_speed(played, add)
        rows = [self._row(system, played[system.name], cells[system.name]) for system in systems]
        return Table(
            name=self.protocol.name,
            about=self._about(sets),
            columns=columns,
            rows=rows,
            checks=control_checks(columns, rows),
            players=self._players(played),
            protocol={
                "settings": asdict(self.protocol),
                "segments": [segment.clip_id for segment in self.segments],
                "problems": self.selection.problems,
                "embeddings": [embedding.provenance() for embedding in self.embeddings],
            },
        )

    def _play(self, system: System) -> Generations:
        made = Generations(self.folder, system, self.rate_hz)
        with progress(f"{self.protocol.name}: {LABELS[system.name]}", total=len(self.segments), unit="clips") as bar:
            made.make(self.segments, self.load, self.settings.batch_clips, bar.advance)
        return made

    def _row(self, system: System, made: Generations, values: dict[str, Value]) -> Row:
        entries = [made.entries[segment.key] for segment in self.segments]
        failures = Counter(entry.failure for entry in entries if entry.failure)
        return Row(
            system=system.name,
            label=LABELS[system.name],
            clips=len(self.segments),
            failed=sum(failures.values()),
            failures=dict(failures),
            facts=system.describe(),
            values=values,
        )

    def _fill_clips(self, played: Mapping[str, Generations], add: AddCell) -> None:
        wanted = [group for group in GROUPS if group in self.settings.metrics]
        for name, made in played.items():
            scores = self._scores(made) if wanted else None
            for column in [column for group in wanted for column in clip_columns(group)]:
                assert scores is not None
                values = scores.column(column.key, self.segments)
                if values is None:  # songs of people have no known truth: no such columns
                    continue
                found = bootstrap_interval(values, self.settings.seed, groups=self.songs)
                add(column, name, Value(found.mean, found.low, found.high))

    def _scores(self, made: Generations) -> ClipScores:
        scores = ClipScores(self.folder / "scores" / f"{made.key}.json")
        todo = [segment for segment in self.segments if segment.key not in scores.scores]
        if todo:
            with progress(f"{self.protocol.name}: scores of {made.system.name}", total=len(todo), unit="clips") as bar:
                for segment in todo:
                    scores.add(self.load(segment), made.outcome(segment).samples)
                    bar.advance()
            scores.save()
        return scores

    def _fill_speed(self, played: Mapping[str, Generations], add: AddCell) -> None:
        factor, memory = speed_columns(self.settings.batch_clips)
        for name, made in played.items():
            entries = [made.entries[segment.key] for segment in self.segments]
            timed = [(song, entry.seconds) for song, entry in zip(self.songs, entries, strict=True)]
            factors = [seconds / self.protocol.duration_s for _, seconds in timed if seconds is not None]
            if not factors:
                for column in (factor, memory):
                    add(column, name, Value(None, note="nothing is generated"))
                continue
            songs = [song for song, seconds in timed if seconds is not None]
            found = bootstrap_interval(factors, self.settings.seed, groups=songs)
            add(factor, name, Value(found.mean, found.low, found.high, self._speed_note(entries)))
            known = made.peak_memory_mib
            add(memory, name, Value(known, note="" if known is not None else "not measured on this system"))

    def _speed_note(self, entries: Sequence[Entry]) -> str:
        """How many clips were made at once, where kept generations are of other settings than these."""
        together = sorted({entry.together for entry in entries if entry.seconds is not None})
        if together == [self.settings.batch_clips]:
            return ""
        counts = ", ".join(str(count) if count else "?" for count in together)
        return f"kept from runs with {counts} clips at once"

    def _about(self, sets: Sequence[SetColumns]) -> list[str]:
        chosen, settings = self.selection, self.settings
        lines = [
            f"{len(self.segments)} vocal-active segments of {self.protocol.duration_s:g} s from "
            f"{len(set(self.songs))} of {chosen.songs} songs of {settings.root}/{settings.split} "
            f"(seed {self.protocol.seed})"
        ]
        if chosen.missing:
            lines.append(f"{chosen.missing} more segments were asked for and are not there")
        lines += [f"not readable: {problem}" for problem in chosen.problems]
        lines.append("a failed clip sounds as silence and stays in every mean; intervals are over songs, 95 %")
        return lines + [part.about() for part in sets]

    def _players(self, played: Mapping[str, Generations]) -> list[Player]:
        """The best, the median and the worst clip of one row."""
        wanted = self.settings.rank_by
        if not played or not any(wanted in GROUPS[group] for group in GROUPS if group in self.settings.metrics):
            return []
        name = self.settings.players if self.settings.players in played else list(played)[-1]
        values = self._scores(played[name]).column(wanted, self.segments)
        if values is None:
            return []
        order = np.argsort(values, kind="stable")
        places = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
        return [
            Player(
                title=f"{LABELS[name]}: {title} by {clip_label(wanted)}",
                system=name,
                clip_id=self.segments[place].clip_id,
                score=float(values[place]),
                sounds=self._write_sounds(self.segments[place], played[name]),
            )
            for title, place in places.items()
        ]

    def _write_sounds(self, segment: Segment, made: Generations) -> dict[str, str]:
        """Sounds of a player beside the page: name -> file, relative to the output folder."""
        clip = self.load(segment)
        vocal, truth, generated = (
            Audio(samples[None], self.rate_hz)
            for samples in (clip.vocal, clip.accompaniment, made.outcome(segment).samples)
        )
        sounds = {
            "vocal": limit_peak(vocal),
            "vocal + generated": mix(vocal, generated),
            "vocal + truth": mix(vocal, truth),
            "generated": limit_peak(generated),
        }
        files = {}
        for name, audio in sounds.items():
            kind = name.replace(" + ", "-with-")
            file = Path(self.protocol.name) / "players" / f"{made.key}.{clip_file_stem(clip.clip_id)}.{kind}.wav"
            write_audio(Path(self.settings.output) / file, audio)
            files[name] = file.as_posix()
        return files
