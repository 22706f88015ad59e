"""The tables of one protocol: a row for each system, differences to controls, and clips to listen to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hafm_lightning.audio import Audio, limit_peak, mix, write_audio
from hafm_lightning.evaluation.card.card import Column, Player, Row, Table, Value
from hafm_lightning.evaluation.card.checks import control_checks
from hafm_lightning.evaluation.intervals import bootstrap_interval, paired_difference_interval
from hafm_lightning.evaluation.protocol.clip_scores import ClipScores
from hafm_lightning.evaluation.protocol.columns import Cells, speed_columns
from hafm_lightning.evaluation.segments import Segment, SelectedClips, clip_file_stem
from hafm_lightning.evaluation.systems.base import LABELS
from hafm_lightning.evaluation.systems.generations import Entry, Generations


def system_table(name: str, clips: SelectedClips, played: Mapping[str, Generations], cells: Cells) -> Table:
    """Systems by columns, with the controls' results; the caller adds lines, players and the protocol's settings."""
    columns = [column for column, values in cells.items() if values]
    rows = []
    for system, made in played.items():
        failures = Counter(made.entries[segment.key].failure for segment in clips.segments)
        del failures[""]
        rows.append(
            Row(
                system=system,
                label=LABELS[system],
                clips=len(clips.segments),
                failed=sum(failures.values()),
                failures=dict(failures),
                facts=made.system.describe(),
                values={column.key: cells[column][system] for column in columns},
            )
        )
    return Table(name, about_clips(clips), columns, rows, checks=control_checks(columns, rows))


def about_clips(clips: SelectedClips) -> list[str]:
    """Lines on the songs and segments."""
    selection, settings = clips.selection, clips.selection.settings
    lines = [
        f"{len(clips.segments)} vocal-active segments of {clips.duration_s:g} s from {len(set(clips.songs))} of "
        f"{selection.songs} songs of {settings.root}/{settings.split} (seed {settings.seed})"
    ]
    if selection.missing:
        lines.append(f"{selection.missing} of {settings.clips} requested segments could not be drawn")
    lines += [f"not readable: {problem}" for problem in selection.problems]
    return [*lines, "a failed clip counts as silence and stays in every mean; intervals are over songs, 95 %"]


def speed_cells(
    clips: SelectedClips, played: Mapping[str, Generations], batch_clips: int, processes: int, seed: int
) -> Cells:
    """Real-time factor and peak memory of the systems that generate."""
    factor, memory = speed_columns(batch_clips, processes)
    cells: Cells = {factor: {}, memory: {}}
    for name, made in played.items():
        entries = [made.entries[segment.key] for segment in clips.segments]
        timed = [(song, e.seconds) for song, e in zip(clips.songs, entries, strict=True) if e.seconds is not None]
        if not timed:
            cells[factor][name] = cells[memory][name] = Value(None, note="nothing is generated")
            continue
        factors = [seconds / clips.duration_s for _, seconds in timed]
        interval = bootstrap_interval(factors, seed, groups=[song for song, _ in timed])
        note = _speed_note(entries, batch_clips)
        cells[factor][name] = Value(interval.mean, interval.low, interval.high, note)
        absent = "" if made.peak_memory_mib is not None else "not measured on this system"
        cells[memory][name] = Value(made.peak_memory_mib, note=absent)
    return cells


def _speed_note(entries: Sequence[Entry], batch_clips: int) -> str:
    """The batch sizes of earlier runs, where they differ from the present one."""
    together = sorted({entry.together for entry in entries if entry.seconds is not None})
    if together == [batch_clips]:
        return ""
    counts = ", ".join(str(count) if count else "?" for count in together)
    return f"from earlier runs with {counts} clips at once"


def difference_table(
    name: str,
    clips: SelectedClips,
    scores: Mapping[str, ClipScores],
    columns: Sequence[Column],
    system: str,
    controls: Sequence[str],
    seed: int,
) -> Table:
    """Scores of ``system`` minus those of each control, clip by clip, with intervals over songs."""
    rows = []
    for control in controls:
        values = {}
        for column in columns:
            first, second = (scores[key].column(column.key, clips.segments) for key in (system, control))
            values[column.key] = Value(None, note="not defined for these songs")
            if first is not None and second is not None:
                gap = paired_difference_interval(first, second, seed, groups=clips.songs)
                note = "the interval contains 0" if not gap.excludes_zero else ""
                values[column.key] = Value(gap.mean, gap.low, gap.high, note)
        label = f"{LABELS[system]} − {LABELS[control]}"
        rows.append(Row(f"{system}-{control}", label, len(clips.segments), 0, {}, {}, values))
    about = ["paired differences clip by clip; intervals are over songs, 95 %"]
    return Table(f"{name}: differences", about, list(columns), rows, unit="difference")


def players_of(
    made: Generations, clips: SelectedClips, scores: ClipScores, ranked_by: Column, count: int, folder: Path
) -> list[Player]:
    """Clips of one row from best to worst, evenly spread over the ranks; their sounds go to ``folder/players``."""
    values = scores.column(ranked_by.key, clips.segments)
    if values is None:
        return []
    order = np.argsort(values, kind="stable")[::-1]
    ranks = dict.fromkeys(round(rank - 1e-9) for rank in np.linspace(0, len(order) - 1, count))
    players = []
    for rank in ranks:
        index = order[rank]
        names = {len(order) - 1: "worst", 0: "best"} | ({(len(order) - 1) // 2: "median"} if count == 3 else {})
        title = names.get(rank, f"rank {rank + 1} of {len(order)}")
        players.append(
            Player(
                title=f"{LABELS[made.system.name]}: {title} by {ranked_by.label}",
                system=made.system.name,
                clip_id=clips.segments[index].clip_id,
                score=float(values[index]),
                sounds=_write_sounds(made, clips, clips.segments[index], folder),
            )
        )
    return players


def _write_sounds(made: Generations, clips: SelectedClips, segment: Segment, folder: Path) -> dict[str, str]:
    """Sounds of a player: name -> file, relative to the card, which lies above ``folder``."""
    clip = clips.load(segment)
    vocal, truth, generated = (
        Audio(samples[None], clips.rate_hz)
        for samples in (clip.vocal, clip.accompaniment, made.outcome(segment).samples)
    )
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
