"""The report of a preparation: counts and histograms (JSON), a page with sound examples (HTML), every clip (CSV).

The report is made from files on the disk (records, shards, tokenizers), so a run that was stopped and continued reports
everything. Logs are read one shard at a time: a large corpus has millions of clips. If nothing changed since the last
report, that one is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.files import sha256_of_json, write_atomic, write_json
from hafm_lightning.page.document import render
from hafm_lightning.preparation.plan import Plan
from hafm_lightning.preparation.quality.filters import RULES
from hafm_lightning.preparation.report.logs import write_logs
from hafm_lightning.preparation.report.page import report_page
from hafm_lightning.preparation.run_state import RootState
from hafm_lightning.preparation.shard_work import SoundSettings, cached_separator
from hafm_lightning.progress import progress
from hafm_lightning.shards import STORED_STREAMS, Manifest, ShardReader, song_of
from hafm_lightning.songs.clips import MARGIN_S, clip_sound
from hafm_lightning.songs.song import Listing, Song
from hafm_lightning.songs.stems import read_window, readable
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import read_description
from hafm_lightning.tokens import INSTRUMENTAL_CODES

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
EXAMPLES_FOLDER = "examples"
_LOUDNESS_EDGES = np.linspace(-60.0, 0.0, 31)
_DURATION_EDGES = np.linspace(0.0, 600.0, 31)


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: ``edges [n + 1]``, ``counts [n]``. Values outside count in the outermost bins."""

    edges: list[float]
    counts: list[int]

    @classmethod
    def of(cls, values: Sequence[float], edges: np.ndarray[Any, np.dtype[np.float64]]) -> Histogram:
        """Sort values into bins."""
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        return cls([round(float(edge), 6) for edge in edges], [int(count) for count in counts])


@dataclass(frozen=True)
class CodebookUse:
    """Use of the ids of one codebook."""

    stream: str  # stored stream
    codebook: int  # its number
    vocabulary: int  # number of ids
    used: int  # number of ids that occur
    perplexity: float  # exponential of the entropy; `vocabulary` when all ids are used alike
    counts: list[int]  # how often each id occurs, `[vocabulary]`


@dataclass(frozen=True)
class Example:
    """A clip to listen to."""

    clip: str  # its id
    split: str  # its split
    vocal: str  # wav file below the root
    instrumental: str  # wav file of the original
    decoded: str  # wav file of the instrumental's tokens, decoded
    tokens: list[int]  # the first tokens of the first codebook


@dataclass(frozen=True)
class PreparationReport:
    """Counts of songs and clips, what was not used and why, and examples."""

    root: str  # output folder
    songs: dict[str, int]  # split -> songs with at least one kept clip
    clips: dict[str, int]  # split -> kept clips
    hours: dict[str, float]  # split -> hours of kept clips
    candidates: int  # clips before the filter
    dropped: int  # clips that the filter dropped
    # Rule -> `any` (clips that break it) and `first` (clips that break it and none before it).
    rules: dict[str, dict[str, int]]
    quarantined: list[dict[str, str]]  # songs that could not be read: `name` and `reason`
    left_out: list[dict[str, str]]  # readable songs that were not used: `name` and `reason`
    song_durations_s: Histogram  # lengths of the planned songs
    loudness_lufs: Histogram  # loudness of all candidates
    codebooks: list[CodebookUse]  # of the training split (or the first split)
    tokenizers: dict[str, dict[str, Any]]  # their identities
    # Of each tokenizer: frames, and for every k-means inertia, dead centroids and perplexity.
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)  # clips to listen to
    made_from: str = ""  # digest of the report's sources

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [
            f"{split}: {self.clips[split]} clips of {self.songs[split]} songs, {self.hours[split]:.2f} h"
            for split in self.clips
        ]
        lines.append(f"dropped by the filter: {self.dropped} of {self.candidates} clips")
        lines.append(f"left out: {len(self.left_out)} songs; quarantined: {len(self.quarantined)}")
        lines += [f"  {entry['name']}: {entry['reason']}" for entry in self.quarantined[:10]]
        if len(self.quarantined) > 10:
            lines.append(f"  ... all in {Path(self.root) / 'quarantine.csv'}")
        return "\n".join([*lines, f"report: {Path(self.root) / PAGE_FILE}"])

    @classmethod
    def load(cls, root: Path) -> PreparationReport:
        """The report in ``root``."""
        content = json.loads((root / REPORT_FILE).read_bytes())
        for name in ("song_durations_s", "loudness_lufs"):
            content[name] = Histogram(**content[name])
        content["codebooks"] = [CodebookUse(**entry) for entry in content["codebooks"]]
        content["examples"] = [Example(**entry) for entry in content["examples"]]
        return cls(**content)


def write_report(
    state: RootState,
    plan: Plan,
    listing: Listing,
    records: Sequence[Mapping[str, Any]],
    manifests: Mapping[str, Manifest],
    tokenizers: Tokenizers,
    *,
    sound: SoundSettings,
    examples: int,
) -> PreparationReport:
    """Write logs, examples, ``report.json`` and ``report.html``; or return the earlier report if nothing changed."""
    root = state.root
    digest = _digest(state, plan, listing, tokenizers, examples)
    earlier = _existing(root)
    if earlier is not None and earlier.made_from == digest and earlier.root == str(root):
        return earlier
    quarantined = [asdict(entry) for entry in listing.quarantined + plan.quarantined]
    quarantined += [entry for record in records for entry in record["quarantined"]]
    left_out = [asdict(entry) for entry in listing.left_out + plan.left_out]
    planned = {song.id for unit in plan.units for song in unit.songs}
    counts = write_logs(root, (state.log(unit) for unit in plan.units), quarantined, left_out, _LOUDNESS_EDGES)
    report = PreparationReport(
        root=str(root),
        songs={split: len(manifest.songs()) for split, manifest in manifests.items()},
        clips={split: manifest.clips for split, manifest in manifests.items()},
        hours={s: round(manifest.clips * manifest.duration_s / 3600, 4) for s, manifest in manifests.items()},
        candidates=counts.candidates,
        dropped=counts.dropped,
        rules={name: {"first": counts.first[name], "any": counts.every[name]} for name in RULES},
        quarantined=quarantined,
        left_out=left_out,
        song_durations_s=Histogram.of([f.duration_s for f in state.facts() if f.id in planned], _DURATION_EDGES),
        loudness_lufs=Histogram([float(edge) for edge in _LOUDNESS_EDGES], counts.loudness.tolist()),
        codebooks=_codebook_use(root, manifests),
        tokenizers=tokenizers.identities(),
        training={use: read_description(state.tokenizers / use)[1] for use in tokenizers.identities()},
        examples=list(_examples(root, plan, manifests, tokenizers, sound, examples)),
        made_from=digest,
    )
    write_json(root / REPORT_FILE, asdict(report))
    write_atomic(root / PAGE_FILE, render(report_page(asdict(report))).encode())
    return report


def _digest(state: RootState, plan: Plan, listing: Listing, tokenizers: Tokenizers, examples: int) -> str:
    """Hash of everything that a report is made from."""
    digest = hashlib.sha256()
    unused = [[asdict(entry) for entry in entries] for entries in (listing.quarantined, listing.left_out)]
    digest.update(sha256_of_json([plan.as_dict(), unused, tokenizers.identities(), examples]).encode())
    for unit in plan.units:
        digest.update(hashlib.sha256(state.record_path(unit).read_bytes()).digest())
    return digest.hexdigest()


def _existing(root: Path) -> PreparationReport | None:
    """The report of an earlier run, if it is complete and of this version."""
    if not (root / PAGE_FILE).is_file():
        return None
    try:
        return PreparationReport.load(root)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _codebook_use(root: Path, manifests: Mapping[str, Manifest]) -> list[CodebookUse]:
    split = next((split for split, manifest in manifests.items() if manifest.clips), None)
    if split is None:
        return []
    reader = ShardReader(root / split)
    use = []
    for name in manifests[split].streams:
        stream = STORED_STREAMS[name]
        counts = np.zeros((stream.codebooks, stream.vocabulary), np.int64)
        for number, info in enumerate(reader.manifest.shards):
            rows = reader.arrays(number)[name].reshape(info.clips, stream.codebooks, -1)
            for codebook in range(stream.codebooks):
                counts[codebook] += np.bincount(rows[:, codebook].ravel(), minlength=stream.vocabulary)
        for codebook, row in enumerate(counts):
            share = row[row > 0] / row.sum()
            perplexity = math.exp(-float((share * np.log(share)).sum()))
            use.append(CodebookUse(name, codebook, stream.vocabulary, len(share), round(perplexity, 2), row.tolist()))
    return use


def _examples(
    root: Path, plan: Plan, manifests: Mapping[str, Manifest], tokenizers: Tokenizers, sound: SoundSettings, count: int
) -> Iterator[Example]:
    """Seeded choice of kept clips, written as wav files: vocal, instrumental, and the instrumental's tokens decoded."""
    songs: dict[str, Song] = {song.id: song for unit in plan.units for song in unit.songs}
    total = sum(manifest.clips for manifest in manifests.values())
    chosen = sorted(random.Random(sound.seed).sample(range(total), min(count, total)))
    if not chosen:
        return
    readers = {split: ShardReader(root / split) for split in manifests}
    identity = tokenizers.acoustic.identity
    with progress("Writing examples", len(chosen), "clips") as bar:
        for number, position in enumerate(chosen):
            split, index = _split_and_index(manifests, position)
            clip = readers[split].clip_ids[index]
            song = songs[song_of(clip)]
            separator = cached_separator(sound.separation) if song.needs_separation else None
            start_s = float(clip.rpartition("@")[2])
            with readable(song) as own:
                window = read_window(own, separator, start_s, sound.clips.duration_s, MARGIN_S)
            sounds = clip_sound(window, identity.sample_rate_hz, identity.sample_rate_hz, vocal_acoustic=False)
            codes = readers[split][index][INSTRUMENTAL_CODES].astype(np.int64)
            decoded = tokenizers.acoustic.decode(torch.from_numpy(codes)[None])[0].detach().cpu().numpy()
            waves = {"vocal": sounds.vocal, "instrumental": sounds.instrumental_acoustic, "decoded": decoded}
            files = {name: f"{EXAMPLES_FOLDER}/{number:02d}-{name}.wav" for name in waves}
            for name, wave in waves.items():
                samples = np.clip(wave[None], -1.0, 1.0).astype(np.float32)
                write_audio(root / files[name], Audio(samples, identity.sample_rate_hz))
            yield Example(clip, split, files["vocal"], files["instrumental"], files["decoded"], codes[0, :16].tolist())
            bar.advance(1)


def _split_and_index(manifests: Mapping[str, Manifest], position: int) -> tuple[str, int]:
    """Split and index of a clip whose position counts through all splits."""
    for split, manifest in manifests.items():
        if position < manifest.clips:
            return split, position
        position -= manifest.clips
    raise IndexError(position)
