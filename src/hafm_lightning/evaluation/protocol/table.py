"""The tables of one protocol: a row for each system, differences to controls, and clips to listen to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hafm_lightning.audio import Audio, limit_peak, mix, write_audio
from hafm_lightning.evaluation.card.card import Column, Player, Row, Table, Value
from hafm_lightning.evaluation.card.checks import judge
from hafm_lightning.evaluation.contrasts import Contrasts, Scores, SetScore
from hafm_lightning.evaluation.intervals import FEW_SONGS, mean_interval
from hafm_lightning.evaluation.protocol.clip_scores import ClipScores
from hafm_lightning.evaluation.protocol.columns import Cells, speed_columns
from hafm_lightning.evaluation.segments import Segment, SelectedClips, clip_file_stem
from hafm_lightning.evaluation.systems.generations import Generations


def system_table(
    name: str, clips: SelectedClips, played: Mapping[str, Generations], cells: Cells, contrasts: Contrasts
) -> Table:
    """Systems by columns, judged by their controls; the caller adds lines, players and the protocol's settings."""
    columns = [column for column, values in cells.items() if values]
    rows = []
    for system, made in played.items():
        reasons = (made.entries[segment.key].failure for segment in clips.segments)
        failures = Counter(filter(None, reasons))
        values = {column.key: cells[column][system] for column in columns}
        counts = (len(clips.segments), failures.total(), dict(failures))
        rows.append(Row(system, made.system.label, *counts, made.system.facts, values))
    selection, settings = clips.selection, clips.selection.settings
    about = [
        f"{len(clips.segments)} vocal-active segments of {clips.duration_s:g} s from {len(set(clips.songs))} of "
        f"{selection.songs} songs of {settings.root}/{settings.split} (seed {settings.seed})"
    ]
    if selection.missing:
        about.append(f"{selection.missing} of {settings.clips} requested segments could not be drawn")
    about += [f"not readable: {problem}" for problem in selection.problems]
    about.append(
        "a failed clip counts as silence, which scores worst, and stays in every mean; a failed clip cannot lower a "
        "distance; intervals are over songs, 95 %"
    )
    if len(set(clips.songs)) < FEW_SONGS:
        about.append(
            f"fewer than {FEW_SONGS} songs: intervals follow Student's t and are as wide as so few songs require"
        )
    found = judge(columns, rows, contrasts)
    return Table(
        name,
        about,
        found.columns,
        rows,
        protocol={"positions": found.positions},
        checks=found.checks,
        verdicts=found.verdicts,
    )


def speed_cells(clips: SelectedClips, played: Mapping[str, Generations], batch_clips: int, processes: int) -> Cells:
    """Real-time factor and peak memory of the systems that generate; a clip that failed has no speed."""
    factor, memory = speed_columns(batch_clips, processes)
    cells: Cells = {factor: {}, memory: {}}
    for name, made in played.items():
        entries = zip(clips.songs, (made.entries[segment.key] for segment in clips.segments), strict=True)
        computed = [(song, entry) for song, entry in entries if entry.seconds is not None]
        timed = [(song, entry.seconds, entry.together) for song, entry in computed if not entry.failure]
        if not timed:
            why = "every clip failed" if computed else "nothing is generated"
            cells[factor][name] = cells[memory][name] = Value(None, note=why)
            continue
        songs, seconds, together = zip(*timed, strict=True)
        interval = mean_interval(np.array(seconds) / clips.duration_s, groups=songs, bounds=(0.0, math.inf))
        counts = ", ".join(str(count or "?") for count in sorted(set(together)))
        earlier = "" if set(together) == {batch_clips} else f"from earlier runs with {counts} clips at once"
        failed = f"without {len(computed) - len(timed)} failed clips" if len(computed) > len(timed) else ""
        cells[factor][name] = Value.of(interval, "; ".join(filter(None, (earlier, failed))))
        absent = "" if made.peak_memory_mib is not None else "not measured on this system"
        cells[memory][name] = Value(made.peak_memory_mib, note=absent)
    return cells


def difference_table(table: Table, contrasts: Contrasts, system: str, controls: Sequence[str]) -> Table:
    """Scores of ``system`` minus those of each control, clip by clip, in the columns of ``table``."""
    columns = [column for column in table.columns if column.better and column.key in contrasts.clips]
    return _paired(f"{table.name}: differences", table, columns, contrasts, [(system, other) for other in controls])


def model_table(table: Table, contrasts: Contrasts, models: Sequence[str]) -> Table:
    """Each of ``models`` minus the first one, on the same clips, in every column whose rows can be compared."""
    compared = {*contrasts.clips, *contrasts.sets}
    columns = [column for column in table.columns if column.better and column.key in compared]
    first, *others = models
    return _paired(f"{table.name}: models compared", table, columns, contrasts, [(other, first) for other in others])


def _paired(
    name: str, table: Table, columns: Sequence[Column], contrasts: Contrasts, pairs: Sequence[tuple[str, str]]
) -> Table:
    """A row for each pair: the first system minus the second."""
    labels = {row.system: row.label for row in table.rows}
    rows = []
    for system, other in pairs:
        lost = contrasts.failed.get(other, set())
        failures = {f"{labels[other]} failed: a difference of 0 at most": len(lost)} if lost else {}
        values = {}
        for column in columns:
            gap = contrasts.difference(column.key, system, other)
            few = "no interval from so few songs" if column.key in contrasts.sets else "needs clips of two songs"
            values[column.key] = Value(None, note=few)
            if gap is not None:
                values[column.key] = Value.of(gap, "" if gap.excludes_zero else "the interval contains 0")
        label = f"{labels[system]} − {labels[other]}"
        rows.append(Row(f"{system}-{other}", label, len(contrasts.songs), len(lost), failures, {}, values))
    about = ["paired differences clip by clip; intervals are over songs, 95 %"]
    return Table(name, about, list(columns), rows, unit="difference")


def contrasts_of(
    clips: SelectedClips,
    played: Mapping[str, Generations],
    scores: Mapping[str, ClipScores],
    columns: Sequence[Column],
    sets: Mapping[str, Mapping[str, SetScore]],
) -> Contrasts:
    """Everything that two rows can be compared by: scores of clips, ``sets`` by column key and system, failures."""
    by_clip: dict[str, dict[str, Scores]] = {}
    for column in columns:
        for name, store in scores.items():
            if (values := store.column(column.key, clips.segments)) is not None:
                by_clip.setdefault(column.key, {})[name] = np.array(values)
    failed = {
        name: {index for index, it in enumerate(clips.segments) if made.entries[it.key].failure}
        for name, made in played.items()
    }
    return Contrasts(clips.songs, by_clip, sets, failed)


def players_of(
    made: Generations, clips: SelectedClips, scores: ClipScores, ranked_by: Column, count: int, folder: Path
) -> list[Player]:
    """Clips of one row from best to worst, evenly spread over the ranks; their sounds go to ``folder/players``."""
    values = scores.column(ranked_by.key, clips.segments)
    if values is None:
        return []
    order = np.argsort(values, kind="stable")[::-1]
    last = len(order) - 1
    names = {last: "worst", 0: "best"} | ({last // 2: "median"} if count == 3 else {})
    players = []
    for rank in dict.fromkeys(round(rank - 1e-9) for rank in np.linspace(0, last, count)):
        segment, score = clips.segments[order[rank]], float(values[order[rank]])
        title = f"{made.system.label}: {names.get(rank, f'rank {rank + 1} of {len(order)}')} by {ranked_by.label}"
        sounds = _write_sounds(made, clips, segment, folder)
        players.append(Player(title, made.system.name, segment.clip_id, score, sounds))
    return players


def _write_sounds(made: Generations, clips: SelectedClips, segment: Segment, folder: Path) -> dict[str, str]:
    """Sounds of a player: name -> file, relative to the card, which lies above ``folder``."""
    clip = clips.load(segment)
    parts = (clip.vocal, clip.accompaniment, made.samples(segment))
    vocal, truth, generated = (Audio(samples[None], clips.rate_hz) for samples in parts)
    sounds = {
        "vocal": limit_peak(vocal),
        "vocal + generated": mix(vocal, generated),
        "vocal + truth": mix(vocal, truth),
        "generated": limit_peak(generated),
        "truth": limit_peak(truth),
    }
    files = {}
    for name, audio in sounds.items():
        kind = name.replace(" + ", "-with-")
        file = folder / "players" / f"{made.key}.{clip_file_stem(clip.clip_id)}.{kind}.wav"
        write_audio(file, audio)
        files[name] = file.relative_to(folder.parent).as_posix()
    return files
