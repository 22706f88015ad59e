"""The columns of whole sets of clips for one embedding: FAD, FAD-infinity, KD and APA of every system."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafm_lightning.audio import Audio, Samples, resample
from hafm_lightning.errors import RequestError
from hafm_lightning.evaluation.card.card import Value
from hafm_lightning.evaluation.coherence.meaning import meaning_of
from hafm_lightning.evaluation.contrasts import SetScore
from hafm_lightning.evaluation.distances.adherence import (
    WINDOW_S,
    accompaniment_prompt_adherence,
    adherence_mixes,
    random_partners,
)
from hafm_lightning.evaluation.distances.frechet import (
    IDENTITY_KEY,
    INFINITY_ROWS,
    GaussianStatistics,
    frechet_distance,
    frechet_infinity,
    moments_of,
    pooled_statistics,
)
from hafm_lightning.evaluation.distances.kernel_distance import kernel_distance
from hafm_lightning.evaluation.embeddings.base import Embedding, level_text
from hafm_lightning.evaluation.intervals import jackknife_interval
from hafm_lightning.evaluation.protocol.columns import Cells, set_columns
from hafm_lightning.evaluation.seeds import seed_of
from hafm_lightning.evaluation.segments import Segment, SelectedClips
from hafm_lightning.evaluation.systems.generations import Generations
from hafm_lightning.files import atomic_file
from hafm_lightning.progress import progress
from hafm_lightning.sealing import check_seal, seal
from hafm_lightning.untrusted import checked, parse_json

Rows = npt.NDArray[np.float32]
Sound = Callable[[Segment], Samples]

KERNEL_ROWS = 4000
"""KD compares all pairs: from larger sets this many rows are drawn (seeded, without replacement)."""
SHOWN_SETTINGS = ("weights_sha256", "framing", "activation", "layer", "window_s", "hop_s")
"""Settings of an embedding that the card prints; all of them are in its JSON."""


@dataclass(frozen=True)
class Reference:
    """The set that generated clips are compared with; ``rows``, for KD, are None if a statistics file is given."""

    name: str
    statistics: GaussianStatistics
    rows: Rows | None = None


def embedding_rows(embedding: Embedding, sounds: Sequence[Samples], rate_hz: int) -> Rows:
    """Rows ``[n, d]`` of sounds ``[L]`` at ``rate_hz``, resampled to the embedding's rate."""
    return embedding.rows([resample(samples, rate_hz, embedding.rate_hz) for samples in sounds])


def of_set(
    statistic: SetScore,
    songs: Sequence[Hashable],
    note: str = "",
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> Value:
    """A number of all clips with its interval over songs; ``statistic`` takes indices of clips."""
    interval = jackknife_interval(statistic, songs, minimum=minimum, maximum=maximum)
    return Value(interval.value, interval.low, interval.high, note)


def not_better_for(failed: Set[int], distance: SetScore) -> SetScore:
    """The distance in which no failed clip helps: the larger of the sets with their silence and without."""

    def guarded(chosen: list[int]) -> float:
        whole, sound = distance(chosen), [index for index in chosen if index not in failed]
        return max(whole, distance(sound)) if 0 < len(sound) < len(chosen) else whole

    return guarded if failed else distance


def fad_score(rows: Sequence[Rows], reference: Reference, failed: Set[int] = frozenset()) -> SetScore:
    """FAD to the reference of any set of clips, of which ``rows`` are the rows of each."""
    moments = [moments_of(clip) for clip in rows]

    def distance(chosen: list[int]) -> float:
        return frechet_distance(pooled_statistics([moments[index] for index in chosen]), reference.statistics)

    return not_better_for(failed, distance)


def fad_of(
    rows: Sequence[Rows], songs: Sequence[Hashable], reference: Reference, failed: Set[int] = frozenset()
) -> Value:
    """FAD of clips (rows of each) to the reference."""
    count, width = sum(map(len, rows)), len(reference.statistics.mean)
    few = min(count, reference.statistics.rows) < 2 * width
    note = f"{count} rows for {width} dimensions: biased upwards, compare only within this table" if few else ""
    return of_set(fad_score(rows, reference, failed), songs, note, minimum=0.0)


def fad_infinity_of(rows: Rows, reference: Reference, seed: int) -> Value:
    """FAD of rows to the reference, extrapolated to infinitely many rows."""
    needed, own, theirs = INFINITY_ROWS * rows.shape[1], len(rows), reference.statistics.rows
    if own < needed or theirs < 2 * rows.shape[1]:
        counts = f"{own} rows, {theirs} of the reference; needs {needed} and {2 * rows.shape[1]}"
        return Value(None, note=f"not computed, since the bias of so few rows does not follow 1/n ({counts})")
    return Value(frechet_infinity(rows, reference.statistics, seed=seed_of(seed, "subsets")).value)


def kd_score(rows: Sequence[Rows], reference: Rows, seed: int, failed: Set[int] = frozenset()) -> SetScore:
    """KD to the ``reference`` rows of any set of clips."""
    true = thinned(reference, seed_of(seed, "reference"))
    share = min(1.0, KERNEL_ROWS / sum(len(clip) for clip in rows))
    drawn_rows = [
        thinned(clip, seed_of(seed, "clip", index), max(1, round(share * len(clip)))) for index, clip in enumerate(rows)
    ]

    def distance(chosen: list[int]) -> float:
        return kernel_distance(np.concatenate([drawn_rows[index] for index in chosen]), true)

    return not_better_for(failed, distance)


def kd_of(
    rows: Sequence[Rows], songs: Sequence[Hashable], reference: Reference, seed: int, failed: Set[int] = frozenset()
) -> Value:
    """KD of clips to the reference."""
    if reference.rows is None:
        return Value(None, note="the reference is a statistics file without rows")
    return of_set(kd_score(rows, reference.rows, seed, failed), songs)


def thinned(rows: Rows, seed: int, limit: int = KERNEL_ROWS) -> Rows:
    """At most ``limit`` of the rows, drawn without replacement."""
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]


def apa_score(candidate: Sequence[Rows], true: Sequence[Rows], swapped: Sequence[Rows]) -> SetScore:
    """APA of any set of clips (rows of their mixes); a candidate without rows, silent or noise, counts as swapped."""
    heard = [rows if len(rows) else other for rows, other in zip(candidate, swapped, strict=True)]

    def adherence(chosen: list[int]) -> float:
        return accompaniment_prompt_adherence(
            *(np.concatenate([part[index] for index in chosen]) for part in (true, swapped, heard))
        )

    return adherence


class SetColumns:
    """Rows, reference and distances of one protocol under one embedding.

    The reference is the file ``statistics`` where one is named, else the true accompaniments of ``training`` clips,
    else those of ``clips`` themselves. Rows and statistics are stored in the protocol's ``folder``.
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
        self.scores: dict[str, dict[str, SetScore]] = {}
        if statistics:
            self.reference = Reference(f"statistics file {statistics}", self._checked(statistics))
        elif training is not None:
            self.reference = self._reference(training, "train", f"{len(training.segments)} training segments")
        else:
            self.reference = self._reference(clips, "ground_truth", f"the same {len(clips.segments)} segments")

    def _stored(self, name: str, clips: SelectedClips, make: Callable[[Segment], Rows]) -> list[Rows]:
        """Rows of each segment; those that are not stored under ``name`` are made."""
        path = self.folder / "rows" / f"{self.embedding.name}-{self.short_identity}" / f"{name}.npz"
        stored = _load_rows(path)
        todo = [segment for segment in clips.segments if segment.key not in stored]
        if todo:
            title = f"{self.folder.name}: {self.embedding.name} rows of {name}"
            with progress(title, total=len(todo), unit="clips") as bar:
                for segment in todo:
                    stored[segment.key] = make(segment)
                    bar.advance()
            _save_rows(path, stored)
        return [stored[segment.key] for segment in clips.segments]

    def _rows(self, name: str, clips: SelectedClips, sound: Sound) -> list[Rows]:
        """Rows of accompaniments."""
        return self._stored(name, clips, lambda it: embedding_rows(self.embedding, [sound(it)], clips.rate_hz))

    def _mixed(self, segment: Segment, accompaniment: Samples) -> Rows:
        """Rows of the segment's vocal with an accompaniment."""
        rate_hz = self.clips.rate_hz
        vocal = Audio(self.clips.load(segment).vocal[None], rate_hz)
        mixes = adherence_mixes(vocal, Audio(accompaniment[None], rate_hz))
        return embedding_rows(self.embedding, mixes, rate_hz)

    def _candidates(self, made: Generations) -> list[Rows]:
        """Rows of each segment's vocal with what a system plays; none where that is silent or noise."""

        def rows(segment: Segment) -> Rows:
            accompaniment = made.samples(segment)
            if meaning_of(accompaniment, self.clips.rate_hz).lost:
                return np.zeros((0, self.embedding.dimensions), np.float32)
            return self._mixed(segment, accompaniment)

        return self._stored(f"pairs-{made.key}", self.clips, rows)

    def _reference(self, clips: SelectedClips, key: str, of: str) -> Reference:
        name = f"true accompaniments of {of}"
        rows = np.concatenate(self._rows(f"reference-{key}", clips, lambda it: clips.load(it).accompaniment))
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
        """The cells of every system; ``scores`` then holds what gives the number of any set of clips."""
        self.scores = {column.key: {} for column in self.columns.values()}
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
        parts, songs = self._rows(made.key, self.clips, made.samples), self.clips.songs
        together = np.concatenate(parts)
        self.rows_a_system = len(together)
        failed = {index for index, it in enumerate(self.clips.segments) if made.entries[it.key].failure}
        values, name = {}, made.system.name
        if "fad" in self.columns:
            values["fad"] = fad_of(parts, songs, self.reference, failed)
            values["fad_infinity"] = fad_infinity_of(together, self.reference, self.seed)
            self.scores[self.columns["fad"].key][name] = fad_score(parts, self.reference, failed)
        if "kd" in self.columns:
            values["kd"] = kd_of(parts, songs, self.reference, self.seed, failed)
            if self.reference.rows is not None:
                self.scores[self.columns["kd"].key][name] = kd_score(parts, self.reference.rows, self.seed, failed)
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
        true = self._stored("mixes-true", self.clips, lambda it: self._mixed(it, load(it).accompaniment))
        # a clip's partner depends on all clips: these rows are not stored
        taken = [played["random"].entries[it.key].note if "random" in played else "" for it in segments]
        indices = swapped_partners(songs, [segment.clip_id for segment in segments], taken, self.seed)
        partners = (load(segments[index]).accompaniment for index in indices)
        swapped = [self._mixed(*pair) for pair in zip(segments, partners, strict=True)]
        column = self.columns["apa"].key
        for name, made in played.items():
            self.scores[column][name] = apa_score(self._candidates(made), true, swapped)
        return {name: of_set(it, songs, minimum=0.0, maximum=1.0) for name, it in self.scores[column].items()}

    def about(self) -> str:
        """One line for the card."""
        embedding, reference = self.embedding, self.reference
        facts = [f"{embedding.rate_hz} Hz", f"{embedding.dimensions} dimensions"]
        for name, value in embedding.settings.items():
            if name in SHOWN_SETTINGS:
                facts.append(f"{name.replace('_', ' ')} {str(value)[:12] if name.endswith('sha256') else value}")
        facts.append(f"level {level_text(embedding.level)}")
        facts += [f"identity {self.short_identity}", f"{self.rows_a_system} rows a system"]
        return f"{embedding.name}: {', '.join(facts)}; reference: {reference.name} ({reference.statistics.rows} rows)"


def swapped_partners(songs: Sequence[str], clips: Sequence[str], taken: Sequence[str], seed: int) -> list[int]:
    """For each clip the index of one of another song that is not ``taken``, the clip in the row of random pairing.

    That row is compared with these pairs: where both had the same partner, it would be as near as can be by definition.
    With too few clips of other songs a taken one is used.
    """
    partners = random_partners(songs, seed_of(seed, "swapped pairs"))
    for index, partner in enumerate(partners):
        if clips[partner] == taken[index]:
            others = [it for it in range(len(songs)) if songs[it] != songs[index] and clips[it] != taken[index]]
            if others:
                generator = np.random.default_rng(seed_of(seed, "other partner", index))
                partners[index] = others[int(generator.integers(len(others)))]
    return partners


def _load_rows(path: Path) -> dict[str, Rows]:
    """Embedding rows by segment key."""
    if not path.is_file():
        return {}
    advice = "delete it to compute it again"
    check_seal(path, what="a file of embeddings", advice=advice)
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = checked(parse_json(str(archive["clips"]), path, advice=advice), list[str], path, advice)
            rows = {name: np.asarray(archive[str(index)]) for index, name in enumerate(names)}
        if any(array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all() for array in rows.values()):
            raise ValueError("its rows are no finite numbers [n, d]")
        return rows
    except RequestError:
        raise
    except (KeyError, ValueError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise RequestError(f"{path} is damaged ({error}); {advice}") from error


def _save_rows(path: Path, rows: Mapping[str, Rows]) -> None:
    arrays: dict[str, Any] = {str(index): values for index, values in enumerate(rows.values())}
    with atomic_file(path) as draft:
        with draft.open("wb") as file:
            np.savez(file, clips=np.str_(json.dumps(list(rows))), **arrays)
        seal(draft)
