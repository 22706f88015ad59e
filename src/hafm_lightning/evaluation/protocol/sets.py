"""The columns of a protocol that belong to whole sets of clips: FAD, FAD-infinity, KD, APA, for one embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import Column, Value
from hafm_lightning.evaluation.distances.adherence import WINDOW_S, random_partners
from hafm_lightning.evaluation.distances.frechet import IDENTITY_KEY, GaussianStatistics
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.jackknife import SetInterval
from hafm_lightning.evaluation.protocol.columns import set_columns
from hafm_lightning.evaluation.protocol.set_scores import (
    Reference,
    Rows,
    adherence_rows,
    apa_of,
    clip_rows,
    fad_infinity_of,
    fad_of,
    kd_of,
)
from hafm_lightning.evaluation.segments import MusicClip, Segment, select_segments
from hafm_lightning.evaluation.settings import EvaluateSettings, ProtocolSettings
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.evaluation.systems.row_store import RowStore
from hafm_lightning.progress import progress

SHOWN_SETTINGS = ("weights_sha256", "framing", "activation", "layer", "window_s", "hop_s")
"""Settings of an embedding that the card prints; all of them are in its JSON."""
AddCell = Callable[[Column, str, Value], None]
"""Receives a column, a system's name and the cell."""


class SetColumns:
    """Rows, reference and distances of one protocol under one embedding.

    Args:
        settings: Of the whole evaluation.
        protocol: Of this table.
        folder: Where rows and statistics are kept.
        embedding: What rows are made with.
        segments: The evaluated ones, in order.
        load: Reads a segment.
        rate_hz: Sample rate of what systems played.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        protocol: ProtocolSettings,
        folder: Path,
        embedding: Embedding,
        segments: Sequence[Segment],
        load: Callable[[Segment], MusicClip],
        rate_hz: int,
    ) -> None:
        self.settings, self.protocol, self.folder = settings, protocol, folder
        self.embedding, self.segments, self.load, self.rate_hz = embedding, segments, load, rate_hz
        self.songs = [segment.song.id for segment in segments]
        self.columns = set_columns(embedding, settings.metrics)
        self.short_identity = embedding.identity.rsplit(":", 1)[-1][:12]
        self.rows_a_system = 0
        self.reference = self._reference()

    def rows(self, name: str, segments: Sequence[Segment], make: Callable[[Segment], Rows]) -> list[Rows]:
        """Rows of each segment, made where they are not kept under ``name`` already."""
        store = RowStore(self.folder / "rows" / f"{self.embedding.name}-{self.short_identity}" / f"{name}.npz")
        todo = [segment for segment in segments if segment.key not in store.rows]
        if todo:
            title = f"{self.protocol.name}: {self.embedding.name} rows of {name}"
            with progress(title, total=len(todo), unit="clips") as bar:
                for segment in todo:
                    store.rows[segment.key] = make(segment)
                    bar.advance()
            store.save()
        return [store.rows[segment.key] for segment in segments]

    def _true_rows(self, segment: Segment) -> Rows:
        return clip_rows(self.embedding, self.load(segment).accompaniment, self.rate_hz)

    def _reference(self) -> Reference:
        given = self.settings.statistics.get(self.embedding.name)
        if given is not None:
            return Reference(f"statistics file {given}", self._checked(given))
        segments, name = self.segments, f"true accompaniments of the same {len(self.segments)} segments"
        if self.settings.reference == "train":
            drawn = replace(self.protocol, clips=self.settings.reference_clips, per_song=0)
            segments = select_segments(drawn.segments(self.settings.root, "train")).segments
            name = f"true accompaniments of {len(segments)} training segments"
        rows = np.concatenate(self.rows(f"reference-{self.settings.reference}", segments, self._true_rows))
        about = self.embedding.provenance(
            set=name,
            clips=len(segments),
            seconds_a_clip=self.protocol.duration_s,
            root=self.settings.root,
            seed=self.protocol.seed,
        )
        statistics = GaussianStatistics.from_rows(rows, about)
        statistics.save(self.folder / "statistics" / f"{self.embedding.name}.npz")
        return Reference(name, statistics, rows)

    def _checked(self, path: str) -> GaussianStatistics:
        """A statistics file; RequestError unless its rows were made by this very embedding."""
        statistics = GaussianStatistics.load(path)
        identity = statistics.provenance.get(IDENTITY_KEY)
        if identity != self.embedding.identity:
            made_by = f"by {identity}" if identity else "by an embedding that it does not name"
            raise RequestError(
                f"{path}: its rows were made {made_by}, those of this card by {self.embedding.identity}\n"
                f"correct `statistics.{self.embedding.name}`: weights, layer, framing and window must be the same"
            )
        return statistics

    def fill(self, played: Mapping[str, Generations], add: AddCell) -> None:
        """Fill the cells of every system."""
        for name, made in played.items():
            if {"fad", "kd"} & set(self.columns):
                self._fill_distances(name, made, add)
        if "apa" in self.columns and played:
            self._fill_adherence(played, add)

    def _fill_distances(self, name: str, made: Generations, add: AddCell) -> None:
        def played_rows(segment: Segment) -> Rows:
            return clip_rows(self.embedding, made.outcome(segment).samples, self.rate_hz)

        parts = self.rows(made.key, self.segments, played_rows)
        count, width = sum(map(len, parts)), self.embedding.dimensions
        self.rows_a_system = count
        if "fad" in self.columns:
            few = min(count, self.reference.statistics.rows) < 2 * width
            note = f"{count} rows for {width} dimensions: biased upwards, compare only within this table" if few else ""
            add(self.columns["fad"], name, of_set(fad_of(parts, self.songs, self.reference), note))
            found = fad_infinity_of(parts, self.reference, self.settings.seed)
            if found is None:
                add(self.columns["fad_infinity"], name, Value(None, note="fewer than 4 rows"))
            else:
                shaky = "" if found[1] else "its smallest subset has fewer rows than dimensions: not to be trusted"
                add(self.columns["fad_infinity"], name, Value(found[0], note=shaky))
        if "kd" in self.columns:
            kd = kd_of(parts, self.songs, self.reference, self.settings.seed)
            absent = Value(None, note="the reference is a statistics file without rows")
            add(self.columns["kd"], name, absent if kd is None else of_set(kd))

    def _fill_adherence(self, played: Mapping[str, Generations], add: AddCell) -> None:
        reason = ""
        if self.protocol.duration_s < WINDOW_S:
            reason = f"APA needs clips of at least {WINDOW_S:g} s"
        elif len(set(self.songs)) < 2:
            reason = "APA needs clips of at least two songs"
        if reason:
            for name in played:
                add(self.columns["apa"], name, Value(None, note=reason))
            return
        partners = random_partners(self.songs, self.settings.seed + 1)
        partner_of = {segment.key: self.segments[partners[place]] for place, segment in enumerate(self.segments)}

        def mixed(segment: Segment, accompaniment: Rows) -> Rows:
            return adherence_rows(self.embedding, self.load(segment).vocal, accompaniment, self.rate_hz)

        true = self.rows("mixes-true", self.segments, lambda s: mixed(s, self.load(s).accompaniment))
        # which partner a clip gets depends on all clips: these rows are not kept
        swapped = [mixed(s, self.load(partner_of[s.key]).accompaniment) for s in self.segments]
        for name, made in played.items():

            def with_played(segment: Segment, made: Generations = made) -> Rows:
                return mixed(segment, made.outcome(segment).samples)

            candidate = self.rows(f"mixes-{made.key}", self.segments, with_played)
            add(self.columns["apa"], name, of_set(apa_of(candidate, true, swapped, self.songs)))

    def about(self) -> str:
        """One line for the card."""
        embedding, reference = self.embedding, self.reference
        facts = [f"{embedding.rate_hz} Hz", f"{embedding.dimensions} dimensions"]
        facts += [
            f"{name.replace('_', ' ')} {str(value)[:12] if name.endswith('sha256') else value}"
            for name, value in embedding.settings.items()
            if name in SHOWN_SETTINGS
        ]
        facts += [f"identity {self.short_identity}", f"{self.rows_a_system} rows a system"]
        return f"{embedding.name}: {', '.join(facts)}; reference: {reference.name} ({reference.statistics.rows} rows)"


def of_set(found: SetInterval, note: str = "") -> Value:
    """A cell from a number of a set."""
    return Value(found.value, found.low, found.high, note)
