"""What a preparation did: counts and histograms (JSON), a page to look at and listen to (HTML), and every clip (CSV).

The report is made from what lies on the disk (records, shards, tokenizers), so a run that was stopped and continued
reports the whole. If nothing changed since the last report, that one is kept.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.preparation.clips import MARGIN_S, clip_sound
from hafm_lightning.preparation.corpora import Listing, Song
from hafm_lightning.preparation.files import sha256_of_json, write_atomic, write_json
from hafm_lightning.preparation.filters import RULES
from hafm_lightning.preparation.plan import Plan
from hafm_lightning.preparation.report_page import page
from hafm_lightning.preparation.shards import STORED_STREAMS, Manifest, ShardReader, song_of
from hafm_lightning.preparation.stems import read_window
from hafm_lightning.preparation.work import SoundSettings, cached_separator
from hafm_lightning.progress import progress
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokens import INSTRUMENTAL_CODES

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
CLIP_LOG = "clips.csv"
QUARANTINE_LOG = "quarantine.csv"
EXAMPLES_FOLDER = "examples"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: ``edges [n + 1]``, ``counts [n]``."""

    edges: list[float]
    counts: list[int]

    @classmethod
    def of(cls, values: Sequence[float], low: float, high: float, bins: int) -> Histogram:
        """Values outside ``low`` to ``high`` count in the outermost bins."""
        edges = np.linspace(low, high, bins + 1)
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        return cls([round(float(edge), 6) for edge in edges], [int(count) for count in counts])


@dataclass(frozen=True)
class CodebookUse:
    """How the ids of one codebook are used: ``used`` of ``vocabulary``, ``perplexity`` (exp of the entropy)."""

    stream: str
    codebook: int
    vocabulary: int
    used: int
    perplexity: float
    counts: list[int]


@dataclass(frozen=True)
class Example:
    """A clip to listen to: files below the root, and its first tokens."""

    clip: str
    split: str
    vocal: str
    instrumental: str
    decoded: str
    tokens: list[int]


@dataclass(frozen=True)
class PreparationReport:
    """What came in, what went out, and what was put aside.

    Attributes:
        root: Output folder.
        songs: Split -> songs with at least one kept clip.
        clips: Split -> kept clips.
        hours: Split -> hours of kept clips.
        candidates: Clips before the filter.
        dropped: Clips that the filter dropped.
        rules: Rule -> ``any`` (clips that break it) and ``first`` (clips that break it and none before it).
        quarantined: Songs that could not be read: ``name`` and ``reason``.
        left_out: Songs that were not used though they can be read: ``name`` and ``reason``.
        song_durations_s: Lengths of the songs.
        loudness_lufs: Of all candidates.
        codebooks: Use of every codebook in the training split (or the first split there is).
        tokenizers: Their identities.
        examples: Clips to listen to.
        made_from: Digest of everything the report was made from.
    """

    root: str
    songs: dict[str, int]
    clips: dict[str, int]
    hours: dict[str, float]
    candidates: int
    dropped: int
    rules: dict[str, dict[str, int]]
    quarantined: list[dict[str, str]]
    left_out: list[dict[str, str]]
    song_durations_s: Histogram
    loudness_lufs: Histogram
    codebooks: list[CodebookUse]
    tokenizers: dict[str, dict[str, Any]]
    examples: list[Example] = field(default_factory=list)
    made_from: str = ""

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
            lines.append(f"  ... all in {Path(self.root) / QUARANTINE_LOG}")
        return "\n".join([*lines, f"report: {Path(self.root) / PAGE_FILE}"])

    @classmethod
    def load(cls, root: Path) -> PreparationReport:
        """The report that lies in ``root``."""
        content = json.loads((root / REPORT_FILE).read_bytes())
        for name in ("song_durations_s", "loudness_lufs"):
            content[name] = Histogram(**content[name])
        content["codebooks"] = [CodebookUse(**entry) for entry in content["codebooks"]]
        content["examples"] = [Example(**entry) for entry in content["examples"]]
        return cls(**content)


def write_report(
    root: Path,
    *,
    plan: Plan,
    listing: Listing,
    records: Mapping[str, Record],
    manifests: Mapping[str, Manifest],
    tokenizers: Tokenizers,
    sound: SoundSettings,
    examples: int,
) -> PreparationReport:
    """Write logs, examples, ``report.json`` and ``report.html``; or return the report that is there already."""
    digest = sha256_of_json([list(records.values()), plan.as_dict(), tokenizers.identities(), examples])
    try:
        before = PreparationReport.load(root)
        if before.made_from == digest and before.root == str(root) and (root / PAGE_FILE).is_file():
            return before
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of another version: it is written again
    entries = [entry for record in records.values() for entry in record["entries"]]
    quarantined = [asdict(entry) for entry in listing.quarantined + plan.quarantined]
    quarantined += [entry for record in records.values() for entry in record["quarantined"]]
    left_out = [asdict(entry) for entry in listing.left_out + plan.left_out]
    broken = [entry["dropped_by"].split() for entry in entries]
    first, every = Counter(rules[0] for rules in broken if rules), Counter(rule for rules in broken for rule in rules)
    lasting = [record["duration_s"] / record["songs"] for record in records.values() for _ in range(record["songs"])]
    loudness = [entry["measurements"]["loudness_lufs"] for entry in entries]
    report = PreparationReport(
        root=str(root),
        songs={split: len(manifest.songs()) for split, manifest in manifests.items()},
        clips={split: manifest.clips for split, manifest in manifests.items()},
        hours={split: round(manifest.clips * manifest.duration_s / 3600, 4) for split, manifest in manifests.items()},
        candidates=len(entries),
        dropped=sum(not entry["kept"] for entry in entries),
        rules={name: {"first": first[name], "any": every[name]} for name in RULES},
        quarantined=quarantined,
        left_out=left_out,
        song_durations_s=Histogram.of(lasting, 0.0, 600.0, 30),
        loudness_lufs=Histogram.of(loudness, -60.0, 0.0, 30),
        codebooks=_codebook_use(root, manifests),
        tokenizers=tokenizers.identities(),
        examples=list(_examples(root, plan, manifests, tokenizers, sound, examples)),
        made_from=digest,
    )
    _write_logs(root, entries, quarantined, left_out)
    write_json(root / REPORT_FILE, asdict(report))
    write_atomic(root / PAGE_FILE, page(asdict(report)).encode())
    return report


def _write_logs(
    root: Path, entries: list[dict[str, Any]], quarantined: list[dict[str, str]], left_out: list[dict[str, str]]
) -> None:
    rows = [{**{k: v for k, v in entry.items() if k != "measurements"}, **entry["measurements"]} for entry in entries]
    write_atomic(root / CLIP_LOG, _csv(rows))
    aside = [{"what": "quarantined", **entry} for entry in quarantined]
    aside += [{"what": "left out", **entry} for entry in left_out]
    write_atomic(root / QUARANTINE_LOG, _csv(aside, ("what", "name", "reason")))
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    if rows:
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        write_atomic(root / CLIP_LOG.replace(".csv", ".parquet"), stream.getvalue())


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]) if rows else list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _codebook_use(root: Path, manifests: Mapping[str, Manifest]) -> list[CodebookUse]:
    split = next((split for split, manifest in manifests.items() if manifest.clips), None)
    if split is None:
        return []
    reader = ShardReader(root / split)
    use = []
    for name in manifests[split].streams:
        stream = STORED_STREAMS[name]
        counts = np.zeros((stream.codebooks, stream.vocabulary), np.int64)
        for number in range(len(reader.manifest.shards)):
            rows = reader.arrays(number)[name].reshape(reader.manifest.shards[number].clips, stream.codebooks, -1)
            for codebook in range(stream.codebooks):
                counts[codebook] += np.bincount(rows[:, codebook].ravel(), minlength=stream.vocabulary)
        for codebook, row in enumerate(counts):
            share = row[row > 0] / row.sum()
            perplexity = math.exp(-float((share * np.log(share)).sum()))
            use.append(CodebookUse(name, codebook, stream.vocabulary, len(share), round(perplexity, 2), row.tolist()))
    return use


def _examples(
    root: Path,
    plan: Plan,
    manifests: Mapping[str, Manifest],
    tokenizers: Tokenizers,
    sound: SoundSettings,
    wanted: int,
) -> Iterator[Example]:
    """Seeded choice of kept clips, written as wav files: vocal, instrumental, and the instrumental's tokens decoded."""
    songs: dict[str, Song] = {song.id: song for unit in plan.units for song in unit.songs}
    kept = [(split, index) for split, manifest in manifests.items() for index in range(manifest.clips)]
    chosen = sorted(random.Random(sound.seed).sample(range(len(kept)), min(wanted, len(kept))))
    readers = {split: ShardReader(root / split) for split in manifests}
    identity = tokenizers.acoustic.identity
    with progress("Writing examples", len(chosen), "clips") as bar:
        for number, place in enumerate(chosen):
            split, index = kept[place]
            reader = readers[split]
            clip = reader.clip_ids[index]
            song = songs[song_of(clip)]
            start_s = float(clip.rpartition("@")[2])
            separator = cached_separator(sound.separation) if song.needs_separation else None
            window = read_window(song, separator, start_s, sound.clips.duration_s, MARGIN_S)
            heard = clip_sound(window, identity.sample_rate_hz, identity.sample_rate_hz, vocal_acoustic=False)
            codes = reader[index][INSTRUMENTAL_CODES].astype(np.int64)
            decoded = tokenizers.acoustic.decode(torch.from_numpy(codes)[None])[0].detach().cpu().numpy()
            files = {}
            for name, wave in (
                ("vocal", heard.vocal),
                ("instrumental", heard.instrumental_acoustic),
                ("decoded", decoded),
            ):
                files[name] = f"{EXAMPLES_FOLDER}/{number:02d}-{name}.wav"
                samples = np.clip(wave[None], -1.0, 1.0).astype(np.float32)
                write_audio(root / files[name], Audio(samples, identity.sample_rate_hz))
            yield Example(clip, split, files["vocal"], files["instrumental"], files["decoded"], codes[0, :16].tolist())
            bar.advance(1)
