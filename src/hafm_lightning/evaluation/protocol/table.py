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
from hafm_lightning.evaluation.systems.generations import Generations


def system_table(name: str, clips: SelectedClips, played: Mapping[str, Generations], cells: Cells) -> Table:
    """Systems by columns, with the controls' results; the caller adds lines, players and the protocol's settings."""
    columns = [column for column, values in cells.items() if values]
    rows = []
    for system, made in played.items():
        reasons = (made.entries[segment.key].failure for segment in clips.segments)
        failures = Counter(filter(None, reasons))
        values = {column.key: cells[column][system] for column in columns}
        counts = (len(clips.segments), failures.total(), dict(failures))
        rows.append(Row(system, LABELS[system], *counts, made.system.facts, values))
    selection, settings = clips.selection, clips.selection.settings
    about = [
        f"{len(clips.segments)} vocal-active segments of {clips.duration_s:g} s from {len(set(clips.songs))} of "
        f"{selection.songs} songs of {settings.root}/{settings.split} (seed {settings.seed})"
    ]
    if selection.missing:
        about.append(f"{selection.missing} of {settings.clips} requested segments could not be drawn")
    about += [f"not readable: {problem}" for problem in selection.problems]
    about.append("a failed clip counts as silence and stays in every mean; intervals are over songs, 95 %")
    return Table(name, about, columns, rows, checks=control_checks(columns, rows))


def speed_cells(
    clips: SelectedClips, played: Mapping[str, Generations], batch_clips: int, processes: int, seed: int
) -> Cells:
    """Real-time factor and peak memory of the systems that generate."""
    factor, memory = speed_columns(batch_clips, processes)
    cells: Cells = {factor: {}, memory: {}}
    for name, made in played.items():
        entries = zip(clips.songs, (made.entries[segment.key] for segment in clips.segments), strict=True)
        timed = [(song, entry.seconds, entry.together) for song, entry in entries if entry.seconds is not None]
        if not timed:
            cells[factor][name] = cells[memory][name] = Value(None, note="nothing is generated")
            continue
        songs, seconds, together = zip(*timed, strict=True)
        interval = bootstrap_interval(np.array(seconds) / clips.duration_s, seed, groups=songs)
        counts = ", ".join(str(count or "?") for count in sorted(set(together)))
        earlier = "" if set(together) == {batch_clips} else f"from earlier runs with {counts} clips at once"
        cells[factor][name] = Value.of(interval, earlier)
        absent = "" if made.peak_memory_mib is not None else "not measured on this system"
        cells[memory][name] = Value(made.peak_memory_mib, note=absent)
    return cells


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
                values[column.key] = Value.of(gap, "" if gap.excludes_zero else "the interval contains 0")
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
    last = len(order) - 1
    names = {last: "worst", 0: "best"} | ({last // 2: "median"} if count == 3 else {})
    players = []
    for rank in dict.fromkeys(round(rank - 1e-9) for rank in np.linspace(0, last, count)):
        segment, score = clips.segments[order[rank]], float(values[order[rank]])
        title = (
            f"{LABELS[made.system.name]}: {names.get(rank, f'rank {rank + 1} of {len(order)}')} by {ranked_by.label}"
        )
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
