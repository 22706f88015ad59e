"""The preparation report as one HTML page: tables, bars as SVG, and sound examples.

There is no script and nothing from the network; the audio files are beside the page.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
h2 { margin-top: 2rem; } code { font-size: .9em; } svg { display: block; margin: .5rem 0; }
rect { fill: #4a7fb5; } text { font: 11px system-ui, sans-serif; fill: #555; } audio { width: 15rem; }
"""
_SHOWN_ROWS = 200
_CODEBOOK_BINS = 64
_CHART_WIDTH, _CHART_HEIGHT = 640, 120


def page(report: Mapping[str, Any]) -> str:
    """The page for the report's JSON values."""
    splits = table(
        ["split", "songs", "clips", "hours"],
        [[split, report["songs"][split], n, f"{report['hours'][split]:.2f}"] for split, n in report["clips"].items()],
    )
    rules = table(
        ["rule", "clips that break it", "of these, break no rule before it"],
        [[name, counts["any"], counts["first"]] for name, counts in report["rules"].items()],
    )
    columns = ["kind", "sha256", "resampler"]
    identities = [[use, *(item[name] for name in columns)] for use, item in report["tokenizers"].items()]
    tokenizers = table(["use", *columns], identities)
    sections = [
        ("Shards", splits),
        ("Quality filter", f"<p>{report['dropped']} of {report['candidates']} clips dropped.</p>{rules}"),
        ("Quarantined", _unused(report["quarantined"], "Nothing was quarantined.")),
        ("Left out", _unused(report["left_out"], "Nothing was left out.")),
        ("Song durations (s)", bars(report["song_durations_s"]["edges"], report["song_durations_s"]["counts"])),
        ("Loudness of clips (LUFS)", bars(report["loudness_lufs"]["edges"], report["loudness_lufs"]["counts"])),
        ("Codebooks", _codebooks(report["codebooks"])),
        ("Examples", _examples(report["examples"])),
        ("Tokenizers", tokenizers + _training(report["training"])),
    ]
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Preparation report</title>"
        f"<style>{_STYLE}</style></head><body><h1>Preparation report</h1>"
        f"<p><code>{html.escape(report['root'])}</code></p>\n{body}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; text is escaped, numbers are aligned to the right."""
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = [
            f"<td class='number'>{cell}</td>" if isinstance(cell, int | float) else f"<td>{html.escape(str(cell))}</td>"
            for cell in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def bars(edges: Sequence[float], counts: Sequence[int]) -> str:
    """A histogram as SVG; hovering a bar shows its numbers."""
    highest = max([*counts, 1])
    width = _CHART_WIDTH / max(len(counts), 1)
    shapes = []
    for index, count in enumerate(counts):
        height = _CHART_HEIGHT * count / highest
        shapes.append(
            f"<rect x='{index * width:.2f}' y='{_CHART_HEIGHT - height:.2f}' width='{max(width - 0.5, 0.3):.2f}' "
            f"height='{height:.2f}'><title>{edges[index]:g} to {edges[index + 1]:g}: {count}</title></rect>"
        )
    return (
        f"<svg viewBox='0 0 {_CHART_WIDTH} {_CHART_HEIGHT + 16}' width='{_CHART_WIDTH}'>{''.join(shapes)}"
        f"<text x='0' y='{_CHART_HEIGHT + 13}'>{edges[0]:g}</text>"
        f"<text x='{_CHART_WIDTH}' y='{_CHART_HEIGHT + 13}' text-anchor='end'>{edges[-1]:g}</text></svg>"
    )


def _unused(entries: Sequence[Mapping[str, str]], nothing: str) -> str:
    if not entries:
        return f"<p>{nothing}</p>"
    shown = table(["name", "reason"], [[entry["name"], entry["reason"]] for entry in entries[:_SHOWN_ROWS]])
    rest = len(entries) - _SHOWN_ROWS
    return shown + (f"<p>and {rest} more in <code>quarantine.csv</code></p>" if rest > 0 else "")


def _codebooks(codebooks: Sequence[Mapping[str, Any]]) -> str:
    rows = table(
        ["stream", "codebook", "ids used", "of", "perplexity"],
        [[c["stream"], c["codebook"], c["used"], c["vocabulary"], c["perplexity"]] for c in codebooks],
    )
    charts = []
    for entry in codebooks:
        counts = sorted(entry["counts"], reverse=True)
        edges = [round(i * len(counts) / _CODEBOOK_BINS) for i in range(_CODEBOOK_BINS + 1)]
        grouped = [sum(counts[low:high]) for low, high in itertools.pairwise(edges)]
        title = f"{html.escape(entry['stream'])}, codebook {entry['codebook']}: tokens by the rank of their id"
        charts.append(f"<p>{title}</p>{bars(edges, grouped)}")
    return rows + "<details><summary>Histograms</summary>" + "".join(charts) + "</details>"


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return "<p>None.</p>"
    lines = [
        "<table><tr><th>clip</th><th>vocal</th><th>instrumental</th><th>from its tokens</th><th>first tokens</th></tr>"
    ]
    for example in examples:
        players = "".join(
            f"<td><audio controls preload='none' src='{quote(example[name])}'></audio></td>"
            for name in ("vocal", "instrumental", "decoded")
        )
        tokens = " ".join(map(str, example["tokens"]))
        clip = f"{html.escape(example['clip'])}<br>{html.escape(example['split'])}"
        lines.append(f"<tr><td>{clip}</td>{players}<td><code>{tokens}</code></td></tr>")
    return "\n".join([*lines, "</table>"])


def _training(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """How the centroids were trained; empty for pretrained ones."""
    rows: list[list[Any]] = []
    for use, report in reports.items():
        trainings = report.get("kmeans", [])
        for codebook, kmeans in enumerate(trainings if isinstance(trainings, list) else [trainings]):
            sizes = [kmeans[name] for name in ("points", "centroids", "dead_centroids")]
            inertia, explained = float(f"{kmeans['inertia']:.4g}"), f"{kmeans['explained']:.1%}"
            rows.append([use, codebook, *sizes, round(kmeans["perplexity"], 1), inertia, explained])
    if not rows:
        return ""
    return "<p>k-means, on frames of the training songs:</p>" + table(
        ["use", "codebook", "frames", "centroids", "dead", "perplexity", "inertia", "variance explained"], rows
    )
