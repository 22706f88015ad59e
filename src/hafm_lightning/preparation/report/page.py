"""The preparation report as an HTML page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hafm_lightning.page.document import Page, Player, Section, Table
from hafm_lightning.page.figures import Figure, histogram

_SHOWN_ROWS = 200
_CODEBOOK_BINS = 64


def report_page(report: Mapping[str, Any]) -> Page:
    """The page for the report's JSON values."""
    songs, hours = report["songs"], report["hours"]
    splits = [(name, songs[name], clips, f"{hours[name]:.2f}") for name, clips in report["clips"].items()]
    rules = [(name, counts["any"], counts["first"]) for name, counts in report["rules"].items()]
    rules_head = ("rule", "clips that break it", "of these, break no rule before it")
    shares = report["shares"]
    dropped = f"{report['dropped']} of {report['candidates']} clips dropped."
    singing = (
        f"Vocals sing in {100 * shares['singing']:.0f} % of the frames of all clips; in {100 * shares['bleed']:.0f} % "
        "they are above the absolute gate alone, and too soft beside the mixture."
    )
    titles = {"Song durations (s)": "song_durations_s", "Loudness of clips (LUFS)": "loudness_lufs"}
    bars = tuple(histogram(title, **report[key]) for title, key in titles.items())
    keys = ("kind", "sha256", "resampler")
    identities = [(use, *(identity[key] for key in keys)) for use, identity in report["tokenizers"].items()]
    tokenizers = Table.of(("use", *keys), identities, words=True)
    sections = (
        Section("Shards", table=Table.of(["split", "songs", "clips", "hours"], splits)),
        Section("Quality filter", (dropped, singing), table=Table.of(rules_head, rules)),
        _songs("Quarantined", report["quarantined"], "No song was quarantined."),
        _songs("Left out", report["left_out"], "No song was left out."),
        Section("Durations and loudness", figures=bars),
        _codebooks(report["codebooks"]),
        Section("Examples", players=tuple(map(_example, report["examples"]))),
        Section("Tokenizers", table=tokenizers, sections=_training(report["training"])),
    )
    warnings = [f"Warning: {text}." for text in report["warnings"]]
    facts = [f"How it ran: {report['separation']}."] if report["separation"] else []
    return Page("Preparation report", (report["root"], *warnings, *facts), sections=sections)


def _songs(title: str, entries: Sequence[Mapping[str, str]], nothing: str) -> Section:
    if not entries:
        return Section(title, (nothing,))
    rest = len(entries) - _SHOWN_ROWS
    rows = [(entry["name"], entry["reason"]) for entry in entries[:_SHOWN_ROWS]]
    first = (f"The first {_SHOWN_ROWS}; {rest} more in quarantine.csv.",) if rest > 0 else ()
    return Section(title, first, table=Table.of(("name", "reason"), rows, words=True))


def _codebooks(codebooks: Sequence[Mapping[str, Any]]) -> Section:
    keys = ("stream", "codebook", "used", "vocabulary", "perplexity")
    head = ("stream", "codebook", "ids used", "of", "perplexity")
    table = Table.of(head, [[entry[key] for key in keys] for entry in codebooks])
    ranks = Section("Histograms", figures=tuple(map(_ranks, codebooks)), fold="closed")
    return Section("Codebooks", table=table, sections=(ranks,))


def _ranks(codebook: Mapping[str, Any]) -> Figure:
    """Counts of the ids, the most frequent first, in groups of equal size."""
    counts = sorted(codebook["counts"], reverse=True)
    edges = [round(index * len(counts) / _CODEBOOK_BINS) for index in range(_CODEBOOK_BINS + 1)]
    grouped = [sum(counts[low:high]) for low, high in itertools.pairwise(edges)]
    caption = f"{codebook['stream']}, codebook {codebook['codebook']}: tokens by the rank of their id"
    return histogram(caption, edges, grouped)


def _example(example: Mapping[str, Any]) -> Player:
    tokens = f"first tokens: {' '.join(map(str, example['tokens']))}"
    files = {name: example[name] for name in ("vocal", "instrumental")} | {"from its tokens": example["decoded"]}
    return Player(f"{example['clip']} ({example['split']})", tokens, files)


def _training(reports: Mapping[str, Mapping[str, Any]]) -> tuple[Section, ...]:
    """How the centroids were trained; nothing for tokenizers with pretrained ones."""
    rows: list[list[Any]] = []
    for use, report in reports.items():
        trainings = report.get("kmeans", [])
        for codebook, kmeans in enumerate(trainings if isinstance(trainings, list) else [trainings]):
            counts = [kmeans[name] for name in ("points", "centroids", "dead_centroids")]
            inertia, explained = float(f"{kmeans['inertia']:.4g}"), f"{kmeans['explained']:.1%}"
            rows.append([use, codebook, *counts, round(kmeans["perplexity"], 1), inertia, explained])
    head = ("use", "codebook", "frames", "centroids", "dead", "perplexity", "inertia", "variance explained")
    return (Section("k-means, on frames of the training songs", table=Table.of(head, rows)),) if rows else ()
