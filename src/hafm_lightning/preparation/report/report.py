"""The report of a preparation: counts and histograms (JSON), a page with sound examples (HTML), every clip (CSV).

The report is made from files on the disk (records, shards, tokenizers), so a run that was stopped and continued reports
everything. Logs are read one shard at a time: a large corpus has millions of clips.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hafm_lightning.audio import Audio, write_audio
from hafm_lightning.files import sha256_of_json, write_atomic, write_json
from hafm_lightning.page.document import render
from hafm_lightning.preparation.plan import Plan
from hafm_lightning.preparation.quality.filters import RULES
from hafm_lightning.preparation.report.cautions import read_separation, separation_line
from hafm_lightning.preparation.report.logs import Edges, counts_between, write_logs
from hafm_lightning.preparation.report.page import report_page
from hafm_lightning.preparation.run_state import RootState
from hafm_lightning.preparation.shard_work import SoundSettings, separator_for, song_window
from hafm_lightning.progress import progress
from hafm_lightning.shards import STORED_STREAMS, Manifest, ShardReader, song_of
from hafm_lightning.songs.clips import clip_sound
from hafm_lightning.songs.song import Listing
from hafm_lightning.tokenizers import Tokenizers
from hafm_lightning.tokenizers.base import read_description
from hafm_lightning.tokenizers.kmeans import perplexity
from hafm_lightning.tokens import INSTRUMENTAL_CODES
from hafm_lightning.untrusted import checked, read_json

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
EXAMPLES_FOLDER = "examples"
_LOUDNESS_EDGES = np.linspace(-60.0, 0.0, 31)
_DURATION_EDGES = np.linspace(0.0, 600.0, 31)


@dataclass(frozen=True)
class PreparationReport:
    """Counts of songs and clips, unused songs with the reasons, and examples, as JSON values."""

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
    # Histograms: `edges` and the `counts` between them. Values outside count in the outermost bins.
    song_durations_s: dict[str, list[float]]  # lengths of the planned songs
    loudness_lufs: dict[str, list[float]]  # loudness of all candidates
    # Of the training split (or the first split): `stream` and number of each `codebook`, its `vocabulary`, the number
    # of ids `used`, their `perplexity` (`vocabulary` if all are used equally) and the `counts` of each.
    codebooks: list[dict[str, Any]]
    tokenizers: dict[str, dict[str, Any]]  # their identities
    # Of each tokenizer: frames, and for every k-means inertia, dead centroids and perplexity.
    training: dict[str, dict[str, Any]]
    # Id of a `clip`, its `split`, wav files `vocal`, `instrumental` and `decoded` (from the instrumental's tokens)
    # below the root, and the first `tokens` of the first codebook.
    examples: list[dict[str, Any]]
    made_from: str  # digest of the report's sources
    shares: dict[str, float]  # mean shares of frames: `singing`, and `bleed`, which only the absolute gate takes for it
    separation: str  # provider and speed, in one line; empty if nothing was separated
    warnings: list[str]  # properties of the corpus that vocals and their accompaniment do not have, one line each

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [
            f"{split}: {self.clips[split]} clips of {self.songs[split]} songs, {self.hours[split]:.2f} h"
            for split in self.clips
        ]
        lines.append(f"dropped by the filter: {self.dropped} of {self.candidates} clips")
        shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in self.shares.items())
        lines.append(f"vocals: {shares} (of the frames of all clips)")
        lines += [self.separation] if self.separation else []
        lines += [f"warning: {text}" for text in self.warnings]
        lines.append(f"left out: {len(self.left_out)} songs; quarantined: {len(self.quarantined)}")
        lines += [f"  {entry['name']}: {entry['reason']}" for entry in self.quarantined[:10]]
        if len(self.quarantined) > 10:
            lines.append(f"  ... all in {Path(self.root) / 'quarantine.csv'}")
        return "\n".join([*lines, f"report: {Path(self.root) / PAGE_FILE}"])

    @classmethod
    def load(cls, root: Path) -> PreparationReport:
        """The report in ``root``."""
        path, advice = root / REPORT_FILE, "remove it, and prepare again"
        return checked(read_json(path, what="the report of a preparation", advice=advice), cls, path, advice)


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
    with suppress(OSError, ValueError, KeyError, TypeError):  # no report, or one of another version
        earlier = PreparationReport.load(root)
        if (root / PAGE_FILE).is_file() and earlier.made_from == digest and earlier.root == str(root):
            return earlier
    quarantined = [asdict(entry) for entry in listing.quarantined + plan.quarantined]
    quarantined += [entry for record in records for entry in record["quarantined"]]
    left_out = [asdict(entry) for entry in listing.left_out + plan.left_out]
    planned = {song.id for unit in plan.units for song in unit.songs}
    durations_s = [fact.duration_s for fact in state.facts() if fact.id in planned]
    counts = write_logs(root, (state.log(unit) for unit in plan.units), quarantined, left_out, _LOUDNESS_EDGES)
    separation = read_separation(state.work)
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
        song_durations_s=_histogram(_DURATION_EDGES, counts_between(durations_s, _DURATION_EDGES)),
        loudness_lufs=_histogram(_LOUDNESS_EDGES, counts.loudness),
        codebooks=_codebook_use(root, manifests),
        tokenizers=tokenizers.identities(),
        training={use: read_description(state.tokenizers / use)[1] for use in tokenizers.identities()},
        examples=list(_examples(root, plan, manifests, tokenizers, sound, examples)),
        made_from=digest,
        shares=counts.stems.shares(),
        separation=separation_line(separation) if separation else "",
        warnings=counts.stems.warnings(),
    )
    write_json(root / REPORT_FILE, asdict(report))
    write_atomic(root / PAGE_FILE, render(report_page(asdict(report))).encode())
    return report


def _histogram(edges: Edges, counts: npt.NDArray[np.int64]) -> dict[str, list[float]]:
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _digest(state: RootState, plan: Plan, listing: Listing, tokenizers: Tokenizers, examples: int) -> str:
    """Hash of everything that a report is made from."""
    digest = hashlib.sha256()
    unused = [[asdict(entry) for entry in entries] for entries in (listing.quarantined, listing.left_out)]
    digest.update(sha256_of_json([asdict(plan), unused, tokenizers.identities(), examples]).encode())
    for unit in plan.units:
        digest.update(hashlib.sha256(state.record_path(unit).read_bytes()).digest())
    return digest.hexdigest()


def _codebook_use(root: Path, manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
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
            entry = {"stream": name, "codebook": codebook, "vocabulary": stream.vocabulary, "counts": row.tolist()}
            use.append(entry | {"used": int((row > 0).sum()), "perplexity": round(perplexity(row), 2)})
    return use


def _examples(
    root: Path, plan: Plan, manifests: Mapping[str, Manifest], tokenizers: Tokenizers, sound: SoundSettings, count: int
) -> Iterator[dict[str, Any]]:
    """Seeded choice of kept clips, written as wav files: vocal, instrumental, and the instrumental's tokens decoded."""
    songs = {song.id: song for unit in plan.units for song in unit.songs}
    splits = list(manifests)
    firsts = [0, *itertools.accumulate(manifest.clips for manifest in manifests.values())]  # positions of all clips
    chosen = sorted(random.Random(sound.seed).sample(range(firsts[-1]), min(count, firsts[-1])))
    if not chosen:
        return
    readers = {split: ShardReader(root / split) for split in splits}
    identity = tokenizers.acoustic.identity
    with progress("Writing examples", len(chosen), "clips") as bar:
        for number, position in enumerate(chosen):
            place = bisect.bisect_right(firsts, position) - 1
            split, index = splits[place], position - firsts[place]
            clip = readers[split].clip_ids[index]
            song, start_s = songs[song_of(clip)], float(clip.rpartition("@")[2])
            window = song_window(song, start_s, sound, separator_for(song, sound.separation))
            sounds = clip_sound(window, identity.sample_rate_hz, identity.sample_rate_hz, vocal_acoustic=False)
            codes = readers[split][index][INSTRUMENTAL_CODES].astype(np.int64)
            decoded = tokenizers.acoustic.decode(torch.from_numpy(codes)[None])[0].detach().cpu().numpy()
            waves = {"vocal": sounds.vocal, "instrumental": sounds.instrumental_acoustic, "decoded": decoded}
            files = {name: f"{EXAMPLES_FOLDER}/{number:02d}-{name}.wav" for name in waves}
            for name, wave in waves.items():
                samples = np.clip(wave[None], -1.0, 1.0).astype(np.float32)
                write_audio(root / files[name], Audio(samples, identity.sample_rate_hz))
            yield {"clip": clip, "split": split, **files, "tokens": codes[0, :16].tolist()}
            bar.advance(1)
