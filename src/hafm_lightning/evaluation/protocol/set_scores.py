"""The columns of whole sets of clips for one embedding: FAD, FAD-infinity, KD and APA of every system."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hafm_lightning.audio import Audio, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import Value
from hafm_lightning.evaluation.distances.adherence import (
    WINDOW_S,
    accompaniment_prompt_adherence,
    adherence_mixes,
    random_partners,
)
from hafm_lightning.evaluation.distances.frechet import (
    IDENTITY_KEY,
    Float64Array,
    GaussianStatistics,
    frechet_distance,
    frechet_infinity,
    moments_of,
    pooled_statistics,
)
from hafm_lightning.evaluation.distances.kernel_distance import kernel_distance
from hafm_lightning.evaluation.embeddings.base import Embedding
from hafm_lightning.evaluation.intervals import SetInterval, jackknife_interval
from hafm_lightning.evaluation.protocol.columns import Cells, set_columns
from hafm_lightning.evaluation.segments import Segment, SelectedClips
from hafm_lightning.evaluation.systems.base import Samples
from hafm_lightning.evaluation.systems.generations import Generations, Rows, RowStore
from hafm_lightning.progress import progress

KERNEL_ROWS = 4000
"""KD compares all pairs: from larger sets this many rows are drawn (seeded, without replacement)."""
SHOWN_SETTINGS = ("weights_sha256", "framing", "activation", "layer", "window_s", "hop_s")
"""Settings of an embedding that the card prints; all of them are in its JSON."""


@dataclass(frozen=True)
class Reference:
    """The set that generated clips are compared with.

    Attributes:
        name: Description for the card.
        statistics: For FAD.
        rows: For KD; None where only a statistics file is given.
    """

    name: str
    statistics: GaussianStatistics
    rows: Rows | None = None


def clip_rows(embedding: Embedding, samples: Samples, rate_hz: int) -> Rows:
    """Rows of one clip ``[L]`` at ``rate_hz``."""
    return embedding.rows(resample(samples, rate_hz, embedding.rate_hz))


def fad_of(rows: Sequence[Rows], songs: Sequence[Hashable], reference: Reference) -> SetInterval:
    """FAD of clips (rows of each) to the reference, with its interval over songs."""
    moments: list[Float64Array] = [moments_of(clip) for clip in rows]

    def distance(chosen: list[int]) -> float:
        return frechet_distance(pooled_statistics([moments[index] for index in chosen]), reference.statistics)

    return jackknife_interval(distance, songs, minimum=0.0)


def kd_of(rows: Sequence[Rows], songs: Sequence[Hashable], reference: Reference, seed: int) -> SetInterval | None:
    """KD of clips to the reference, with its interval over songs; None without the reference's rows."""
    if reference.rows is None:
        return None
    true = thinned(reference.rows, seed)
    share = min(1.0, KERNEL_ROWS / sum(len(clip) for clip in rows))
    drawn_rows = [thinned(clip, seed, max(1, round(share * len(clip)))) for clip in rows]

    def distance(chosen: list[int]) -> float:
        return kernel_distance(np.concatenate([drawn_rows[index] for index in chosen]), true)

    return jackknife_interval(distance, songs)


def thinned(rows: Rows, seed: int, limit: int = KERNEL_ROWS) -> Rows:
    """At most ``limit`` of the rows, drawn without replacement."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]


def adherence_rows(embedding: Embedding, vocal: Samples, accompaniment: Samples, rate_hz: int) -> Rows:
    """Rows of a clip's 5 s mixes, levelled for APA; ValueError for a clip under 5 s."""
    mixes = adherence_mixes(Audio(vocal[None], rate_hz), Audio(accompaniment[None], rate_hz))
    return embedding.rows([resample(mixed, rate_hz, embedding.rate_hz) for mixed in mixes])


def apa_of(
    candidate: Sequence[Rows], true: Sequence[Rows], swapped: Sequence[Rows], songs: Sequence[Hashable]
) -> SetInterval:
    """APA of clips (rows of their mixes), with its interval over songs."""

    def adherence(chosen: list[int]) -> float:
        sets = (np.concatenate([part[index] for index in chosen]) for part in (true, swapped, candidate))
        true_rows, swapped_rows, candidate_rows = sets
        return accompaniment_prompt_adherence(true_rows, swapped_rows, candidate_rows)

    interval = jackknife_interval(adherence, songs, minimum=0.0)
    high = None if interval.high is None else min(1.0, interval.high)
    return SetInterval(interval.value, interval.low, high)


class SetColumns:
    """Rows, reference and distances of one protocol under one embedding.

    Args:
        clips: The evaluated clips.
        embedding: Makes the rows.
        metrics: Requested groups of columns.
        folder: Of the protocol, where rows and statistics are stored.
        seed: Of everything that is drawn.
        training: Training clips whose true accompaniments are the reference, in place of those of ``clips``.
        statistics: Statistics file that replaces the reference; empty for none.
    """

    def __init__(
        self,
        clips: SelectedClips,
        embedding: Embedding,
        metrics: Sequence[str],
        folder: Path,
        seed: int,
        training: SelectedClips | None = None,
        statistics: str = "",
    ) -> None:
        self.clips, self.embedding, self.folder, self.seed = clips, embedding, folder, seed
        self.columns = set_columns(embedding.name, metrics)
        self.short_identity = embedding.identity.rsplit(":", 1)[-1][:12]
        self.rows_a_system = 0
        if statistics:
            self.reference = Reference(f"statistics file {statistics}", self._checked(statistics))
        elif training is not None:
            name = f"true accompaniments of {len(training.segments)} training segments"
            self.reference = self._reference(training, "train", name)
        else:
            name = f"true accompaniments of the same {len(clips.segments)} segments"
            self.reference = self._reference(clips, "ground_truth", name)

    def rows(self, name: str, segments: Sequence[Segment], make: Callable[[Segment], Rows]) -> list[Rows]:
        """Rows of each segment; those that are not stored under ``name`` are made."""
        store = RowStore(self.folder / "rows" / f"{self.embedding.name}-{self.short_identity}" / f"{name}.npz")
        todo = [segment for segment in segments if segment.key not in store.rows]
        if todo:
            title = f"{self.folder.name}: {self.embedding.name} rows of {name}"
            with progress(title, total=len(todo), unit="clips") as bar:
                for segment in todo:
                    store.rows[segment.key] = make(segment)
                    bar.advance()
            store.save()
        return [store.rows[segment.key] for segment in segments]

    def _reference(self, clips: SelectedClips, key: str, name: str) -> Reference:
        def true_rows(segment: Segment) -> Rows:
            return clip_rows(self.embedding, clips.load(segment).accompaniment, clips.rate_hz)

        rows = np.concatenate(self.rows(f"reference-{key}", clips.segments, true_rows))
        drawn = clips.selection.settings
        about = self.embedding.provenance(
            set=name, clips=len(clips.segments), seconds_a_clip=clips.duration_s, root=drawn.root, seed=drawn.seed
        )
        statistics = GaussianStatistics.from_rows(rows, about)
        statistics.save(self.folder / "statistics" / f"{self.embedding.name}.npz")
        return Reference(name, statistics, rows)

    def _checked(self, path: str) -> GaussianStatistics:
        """A statistics file; RequestError unless its rows were made by this embedding."""
        statistics = GaussianStatistics.load(path)
        identity = statistics.provenance.get(IDENTITY_KEY)
        if identity != self.embedding.identity:
            made_by = f"by {identity}" if identity else "by an embedding that it does not name"
            raise RequestError(
                f"{path}: its rows were made {made_by}, those of this card by {self.embedding.identity}\n"
                f"correct `statistics.{self.embedding.name}`: weights, layer, framing and window must be the same"
            )
        return statistics

    def cells(self, played: Mapping[str, Generations]) -> Cells:
        """The cells of every system."""
        cells: Cells = {column: {} for column in self.columns.values()}
        for name, made in played.items():
            for key, value in self._distances(made).items():
                cells[self.columns[key]][name] = value
        if "apa" in self.columns:
            cells[self.columns["apa"]] = self._adherence(played)
        return cells

    def _distances(self, made: Generations) -> dict[str, Value]:
        if not {"fad", "kd"} & set(self.columns):
            return {}

        def played_rows(segment: Segment) -> Rows:
            return clip_rows(self.embedding, made.outcome(segment).samples, self.clips.rate_hz)

        parts, songs = self.rows(made.key, self.clips.segments, played_rows), self.clips.songs
        count, width = sum(map(len, parts)), self.embedding.dimensions
        self.rows_a_system = count
        values = {}
        if "fad" in self.columns:
            few = min(count, self.reference.statistics.rows) < 2 * width
            note = f"{count} rows for {width} dimensions: biased upwards, compare only within this table" if few else ""
            values["fad"] = of_set(fad_of(parts, songs, self.reference), note)
            values["fad_infinity"] = Value(None, note="fewer than 4 rows")
            if count >= 4:
                infinity = frechet_infinity(np.concatenate(parts), self.reference.statistics, seed=self.seed)
                note = "" if infinity.reliable else "unreliable: its smallest subset has fewer rows than dimensions"
                values["fad_infinity"] = Value(infinity.value, note=note)
        if "kd" in self.columns:
            kd = kd_of(parts, songs, self.reference, self.seed)
            absent = Value(None, note="the reference is a statistics file without rows")
            values["kd"] = absent if kd is None else of_set(kd)
        return values

    def _adherence(self, played: Mapping[str, Generations]) -> dict[str, Value]:
        segments, songs, load = self.clips.segments, self.clips.songs, self.clips.load
        reason = ""
        if self.clips.duration_s < WINDOW_S:
            reason = f"APA needs clips of at least {WINDOW_S:g} s"
        elif len(set(songs)) < 2:
            reason = "APA needs clips of at least two songs"
        if reason or not played:
            return {name: Value(None, note=reason) for name in played}
        partners = random_partners(songs, self.seed + 1)

        def mixed(segment: Segment, accompaniment: Samples) -> Rows:
            return adherence_rows(self.embedding, load(segment).vocal, accompaniment, self.clips.rate_hz)

        true = self.rows("mixes-true", segments, lambda s: mixed(s, load(s).accompaniment))
        # a clip's partner depends on all clips: these rows are not stored
        swapped = [mixed(s, load(segments[p]).accompaniment) for s, p in zip(segments, partners, strict=True)]
        values = {}
        for name, made in played.items():

            def with_played(segment: Segment, made: Generations = made) -> Rows:
                return mixed(segment, made.outcome(segment).samples)

            candidate = self.rows(f"mixes-{made.key}", segments, with_played)
            values[name] = of_set(apa_of(candidate, true, swapped, songs))
        return values

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


def of_set(interval: SetInterval, note: str = "") -> Value:
    """A cell from a number of a set."""
    return Value(interval.value, interval.low, interval.high, note)
